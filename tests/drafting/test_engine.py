"""The draft engine against a second implementation: each rule written down layer by layer, without windows or lanes."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from helpers.tiny_models import DENSE
from pdevis.config import DraftConfig
from pdevis.drafting.engine import DraftEngine
from pdevis.drafting.schedule import Group, Schedule
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.stack import DecoderStack

LAYERS = 8
PROMPT = torch.arange(11) * 17 % 256
NEXT = [torch.tensor([5]), torch.tensor([77]), torch.tensor([9, 200])]
THRESHOLDS = (-1.1, 0.6, 0.9, 0.95, 1.1)


@pytest.fixture(scope="module")
def weights(tiny_model):
    """Scale updates down, so that some layers are as similar to their neighbours as those of a trained model."""
    made = {}
    for arch in DENSE:
        model = tiny_model(arch, layers=LAYERS)
        for i, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight.data *= 0.05 * (i % 4 + 1)
            layer.mlp.down_proj.weight.data *= 0.05 * (i % 4 + 1)
        made[arch] = read_weights(model, "float64", torch.device("cpu"))
    return made


def sequential_skip(stack: DecoderStack, ids: torch.Tensor, config: DraftConfig) -> tuple[torch.Tensor, int]:
    """Apply the published rule as the paper states it: layer by layer, redundant updates dropped."""
    step = stack.begin(len(ids))
    h, dropped = stack.embed(ids), 0
    for layer in range(LAYERS):
        u = h + stack.attention(layer, h, step)
        new = u + stack.mlp(layer, u)
        redundant = F.cosine_similarity(new.float(), h.float(), dim=-1) > config.threshold
        if layer < config.keep_first or layer >= LAYERS - config.keep_last:
            redundant[:] = False
        h = torch.where(redundant[:, None], h, new)
        dropped += int(redundant[-1])
    stack.commit(step)
    return h, dropped


def run(stack: DecoderStack, engine: DraftEngine) -> list:
    stack.rewind(0)
    engine.exact(PROMPT)
    return [engine.draft(ids) for ids in NEXT]


def snapshot(stack: DecoderStack) -> torch.Tensor:
    return torch.stack([rows[: stack.length] for rows in stack.cache.storage])


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_inline_skip_lanes_equal_the_sequential_rule(weights, arch, threshold, window):
    config = DraftConfig(mode="skip", check="inline", threshold=threshold, window=window)
    slow, fast = DecoderStack(weights[arch]), DecoderStack(weights[arch])
    found = run(fast, DraftEngine(fast, config))
    slow.forward(PROMPT)
    for ids, step in zip(NEXT, found, strict=True):
        h, dropped = sequential_skip(slow, ids, config)
        assert torch.equal(step.logits, slow.logits(h[-1:])[0])
        assert step.skipped == dropped
    assert torch.equal(snapshot(fast), snapshot(slow)), "discarded lanes left a trace in the cache"


def test_thresholds_of_the_tests_drop_some_layers_and_keep_some(weights):
    stack = DecoderStack(weights["llama"])
    steps = run(stack, DraftEngine(stack, DraftConfig(mode="skip", check="inline", threshold=0.9)))
    assert 0 < steps[0].skipped < LAYERS - 3


def test_wide_windows_shorten_the_serial_path(weights):
    depths = []
    for window in (1, 2, 8):
        stack = DecoderStack(weights["llama"])
        config = DraftConfig(mode="skip", check="inline", threshold=-1.1, window=window)
        depths.append(run(stack, DraftEngine(stack, config))[0].depth)
    # Layers 0 and 1 alone, then windows over layers 2 to 7, the last of which is kept.
    assert depths == [2 * LAYERS, 4 + 2 * 3, 4 + 2]


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("mode", ["skip", "parallel"])
@pytest.mark.parametrize("check", ["inline", "planned"])
def test_threshold_above_one_equals_exact(weights, arch, mode, check):
    config = DraftConfig(mode=mode, check=check, threshold=1.1, window=3)
    stack, plain = DecoderStack(weights[arch]), DecoderStack(weights[arch])
    found, wanted = run(stack, DraftEngine(stack, config)), run(plain, DraftEngine(plain, DraftConfig(mode="exact")))
    for step, exact in zip(found, wanted, strict=True):
        assert torch.equal(step.logits, exact.logits)
        assert step.skipped == 0
    assert torch.equal(snapshot(stack), snapshot(plain))


@pytest.mark.parametrize("check", ["inline", "planned"])
def test_threshold_below_minus_one_drops_everything_it_may(weights, check):
    stack = DecoderStack(weights["qwen3"])
    config = DraftConfig(mode="skip", check=check, threshold=-1.1, keep_first=1, keep_last=2)
    assert all(step.skipped == LAYERS - 3 for step in run(stack, DraftEngine(stack, config)))


@pytest.mark.parametrize("check", ["inline", "planned"])
def test_parallel_with_one_lane_is_exact(weights, check):
    stack, plain = DecoderStack(weights["qwen2"]), DecoderStack(weights["qwen2"])
    config = DraftConfig(mode="parallel", check=check, threshold=-1.1, window=1)
    found, wanted = run(stack, DraftEngine(stack, config)), run(plain, DraftEngine(plain, DraftConfig(mode="exact")))
    assert all(torch.equal(a.logits, b.logits) and a.depth == b.depth for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("check", ["inline", "planned"])
def test_parallel_pairs_follow_the_formula(weights, arch, check):
    """a = A_l(h), b = A_l+1(h); M_l(h + a), M_l+1(h + a + b); h := h + a + b + both."""
    config = DraftConfig(mode="parallel", check=check, threshold=-1.1)
    stack, other = DecoderStack(weights[arch]), DecoderStack(weights[arch])
    found = run(stack, DraftEngine(stack, config))
    other.forward(PROMPT)
    for ids, draft in zip(NEXT, found, strict=True):
        step = other.begin(len(ids))
        h = other.embed(ids)
        for pair in ((0,), (1,), (2, 3), (4, 5), (6,), (7,)):
            a = other.attention(pair[0], h, step)
            if len(pair) == 1:
                h = h + a
                h = h + other.mlp(pair[0], h)
                continue
            b = other.attention(pair[1], h, step)
            h = h + a + b + other.mlp(pair[0], h + a) + other.mlp(pair[1], h + a + b)
        other.commit(step)
        torch.testing.assert_close(draft.logits, other.logits(h[-1:])[0], rtol=1e-9, atol=1e-9)
        assert draft.depth == 2 * 6
        assert draft.skipped == 2


def test_mlps_after_the_first_batch_read_its_updates(weights):
    stack, other = DecoderStack(weights["llama"]), DecoderStack(weights["llama"])
    engine = DraftEngine(stack, DraftConfig(mode="parallel"))
    engine.schedule = Schedule((Group((0,)), Group((1, 2, 3), mlp_lanes=1), *(Group((i,)) for i in range(4, LAYERS))))
    found = engine.draft(NEXT[0])
    step = other.begin(1)
    h = other.embed(NEXT[0])
    h = h + other.attention(0, h, step)
    h = h + other.mlp(0, h)
    a, b, c = (other.attention(layer, h, step) for layer in (1, 2, 3))
    one = other.mlp(1, h + a)
    two = other.mlp(2, h + a + b + one)
    h = h + a + b + c + one + two + other.mlp(3, h + a + b + c + one + two)
    for layer in range(4, LAYERS):
        h = h + other.attention(layer, h, step)
        h = h + other.mlp(layer, h)
    torch.testing.assert_close(found.logits, other.logits(h)[0], rtol=1e-9, atol=1e-9)
    assert found.depth == 2 * (LAYERS - 3) + 4


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_inline_parallel_keeps_lanes_while_their_true_input_is_similar(weights, threshold):
    """Second implementation of the check: walk the layers, start a new window when the input has diverged."""
    config = DraftConfig(mode="parallel", check="inline", threshold=threshold, window=3, mlp_window=3)
    stack, other = DecoderStack(weights["qwen3"]), DecoderStack(weights["qwen3"])
    found = run(stack, DraftEngine(stack, config))[0]
    other.forward(PROMPT)
    step = other.begin(1)
    common = true = other.embed(NEXT[0])
    attended, lanes, windows = common, 0, 0
    for layer in range(LAYERS):
        alone = layer < 2 or layer >= LAYERS - 1
        if lanes == 0 or lanes == 3 or alone or F.cosine_similarity(true, common) <= threshold:
            common = attended = true
            lanes, windows = 0, windows + 1
        update = other.attention(layer, common, step)
        attended = attended + update
        true = true + update + other.mlp(layer, attended)
        lanes = 3 if alone else lanes + 1
    torch.testing.assert_close(found.logits, other.logits(true)[0], rtol=1e-6, atol=1e-6)
    assert found.skipped == LAYERS - windows


def test_plan_comes_from_the_calibration_pass(weights):
    stack = DecoderStack(weights["llama"])
    engine = DraftEngine(stack, DraftConfig(mode="skip", threshold=0.9))
    assert engine.exact(PROMPT).skipped == 0
    trace = []
    again = DecoderStack(weights["llama"])
    again.run_layers(PROMPT, trace)
    near = [F.cosine_similarity(new, old, dim=-1).mean().item() > 0.9 for old, new in pairwise(trace)]
    assert engine.schedule.dropped == tuple(i for i in range(2, LAYERS - 1) if near[i])
    assert 0 < len(engine.schedule.dropped) < LAYERS - 3
