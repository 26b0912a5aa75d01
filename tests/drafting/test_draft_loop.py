"""DraftLoop: the tokens of the plain loop, and no look from the host within a draft."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.decoding import GREEDY, PROMPT
from helpers.tiny_models import DENSE
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.linear import has_int8
from pdevis.models.stack import DecoderStack
from pdevis.models.static import static_forward
from pdevis.models.static.graphs import EagerGraph
from pdevis.models.static.static_forward import DRAFTER_WIDTHS, StaticForward

CPU = torch.device("cpu")
RULES = {
    "exact": DraftConfig("exact"),
    "wide": DraftConfig("parallel", check="static", schedule="0,1+2,3"),
    "left out": DraftConfig("skip", check="static", schedule="0,1a,3"),
    "uncalibrated": DraftConfig("parallel", check="static", schedule="0,1+2,3", calibrate=False),
    "staggered": DraftConfig("parallel", check="static", schedule="0,1+2,3", stagger=True),  # not in static shapes
    "planned": DraftConfig("parallel", 0.5),  # likewise
}
FORMATS = ["float64", "float32", pytest.param("int8", marks=pytest.mark.skipif(not has_int8(), reason="no fbgemm"))]


def stack_of(model: Any, precision: str = "float64", *, static: bool = False) -> DecoderStack:
    stack = DecoderStack(read_weights(model, precision, CPU, drafter=True), batch_invariant=False)
    if static:
        stack.static = StaticForward(stack, DRAFTER_WIDTHS, backend="eager")
    return stack


def drafter_of(stack: DecoderStack, rule: DraftConfig, config: DecodeConfig = GREEDY) -> Drafter:
    drafter = Drafter(stack, rule, 262)
    drafter.open(PROMPT, config)
    return drafter


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("arch", DENSE)
def test_drafts_are_those_of_the_plain_loop(tiny_model, arch, rule, precision):
    model = tiny_model(arch, dtype=torch.float32)
    drafters = [drafter_of(stack_of(model, precision, static=static), rule) for static in (False, True)]
    confirmed = list(PROMPT)
    for gamma, kept in ((4, 4), (1, 1), (8, 3), (2, 0), (20, 20), (3, 1)):
        plain, fast = (drafter.draft(confirmed, gamma) for drafter in drafters)
        assert fast.ids == plain.ids
        assert (fast.skipped, fast.depth, fast.steps) == (plain.skipped, plain.depth, plain.steps)
        assert drafters[1].confidence() == pytest.approx(drafters[0].confidence(), rel=1e-3)
        assert drafters[1].model.length == drafters[0].model.length
        confirmed += [*plain.ids[:kept], 17]
        for drafter in drafters:
            drafter.rewind_to_confirmed(confirmed)
        assert drafters[1].exact_prefix == drafters[0].exact_prefix


@pytest.mark.parametrize("rule", [RULES["exact"], RULES["wide"]], ids=["exact", "wide"])
def test_stops_and_sampling_are_those_of_the_plain_loop(tiny_model, rule):
    target = stack_of(tiny_model("qwen3", seed=0))
    models = [stack_of(tiny_model("qwen3", seed=0), static=static) for static in (False, True)]
    first = drafter_of(models[0], rule).draft(list(PROMPT), 6).ids
    settings = [replace(GREEDY, eos_ids=(token,), gamma=6) for token in first]
    settings += [replace(GREEDY, gamma="auto"), replace(GREEDY, temperature=1.0, seed=3)]
    for config in settings:
        written = [decode(target, model, rule, config) for model in models]
        assert written[0] == written[1]


def decode(target: DecoderStack, model: DecoderStack, rule: DraftConfig, config: DecodeConfig) -> list[int]:
    drafter = Drafter(model, rule, 264)
    return [e.id for e in speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=DecodeStats())]


class CountedGraph(EagerGraph):
    """A stand-in for a CUDA graph: its work counts as one replay, whatever it does."""

    replays = 0
    inside = False

    def replay(self) -> None:
        CountedGraph.replays += 1
        CountedGraph.inside = True
        super().replay()
        CountedGraph.inside = False


class HostWork(TorchDispatchMode):
    """Counts the operations that the host starts outside of graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.overloadpacket)
        if not CountedGraph.inside:
            self.counts[name] += 1
        assert not (CountedGraph.inside and "local_scalar" in name), "a look at a result within a graph"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [RULES["exact"], RULES["wide"]], ids=["exact", "wide"])
def test_a_draft_needs_no_work_of_the_host_per_token(tiny_model, rule, monkeypatch):
    monkeypatch.setattr(static_forward, "make_graph", lambda device: CountedGraph())
    drafter = drafter_of(stack_of(tiny_model("llama"), static=True), rule)
    confirmed = list(PROMPT)
    work, replays = {}, {}
    drafter.draft(confirmed, 8)  # captures
    (loop,) = drafter.model.static.loops.values()
    blocks = drafter.engine.draft_blocks(exact_first=True)
    for gamma in (2, 8):
        drafter.rewind_to_confirmed(confirmed)
        ids = torch.tensor(confirmed[drafter.model.length :])
        CountedGraph.replays = 0
        with HostWork() as work[gamma], torch.inference_mode():
            tokens, _ = loop.draft(ids, gamma, blocks)
        replays[gamma] = CountedGraph.replays
        assert len(tokens) == gamma
    assert replays == {2: 3, 8: 9}, "the first forward, its choice, and a step per further token"
    assert work[2].counts == work[8].counts
    made = [name for name in work[8].counts if any(word in name for word in ("empty", "zeros", "full", "clone", "cat"))]
    assert made == []
    assert work[8].counts["aten._local_scalar_dense"] == 0


@pytest.mark.parametrize("rule", [RULES["exact"], RULES["wide"]], ids=["exact", "wide"])
def test_drafts_after_one_with_logits_that_are_not_finite(tiny_model, rule):
    """NaN entries of a rejected draft must not reach later ones, which attend to them with weight 0."""
    model = tiny_model("qwen2", dtype=torch.float32)  # whose head is not the embedding
    first = drafter_of(stack_of(model), rule).draft(list(PROMPT), 4).ids
    model.get_input_embeddings().weight.data[first[2]] = torch.nan  # the token after this one has no finite logits
    drafters = [drafter_of(stack_of(model, static=static), rule) for static in (False, True)]
    confirmed = list(PROMPT)
    invalid = []
    for _ in range(3):
        plain, fast = (drafter.draft(confirmed, 6) for drafter in drafters)
        assert (fast.ids, fast.invalid) == (plain.ids, plain.invalid)
        invalid.append(fast.invalid)
        confirmed += [*plain.ids[:1], 17]
        for drafter in drafters:
            drafter.rewind_to_confirmed(confirmed)
    assert invalid[0], "the test must see an invalid draft"
