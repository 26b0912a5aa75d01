"""Tests on a GPU: the forward pass, every drafting mode, graphs, bit-exactness, and a drafter in a separate process.

Skipped if there is none. `python -m pytest tests/test_cuda.py -q` takes about two minutes on one GPU.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from helpers.tiny_models import DENSE
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.loading.checkpoint import find_source, read_config, read_model
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.stack import DecoderStack
from pdevis.models.static import fused_forward
from pdevis.models.static.start import count_differing_rows
from pdevis.models.static.static_forward import StaticForward
from pdevis.pair import load_pair

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

IDS = [3, 14, 15, 92, 65, 35, 89, 79]
GREEDY = DecodeConfig(max_new_tokens=40, gamma=4, eos_ids=())
RULES = [
    DraftConfig("exact"),
    DraftConfig("skip", 0.5, "inline"),
    DraftConfig("skip", 0.5),
    DraftConfig("parallel", 0.3, "inline", 3),
    DraftConfig("parallel", 0.3),
]
STATIC = DraftConfig("parallel", check="static", schedule="0,1+2,3+4,5")
CUDA = {"device": "cuda:0", "target_precision": "bfloat16", "draft_precision": "bfloat16"}
FLOAT32 = {"device": "cuda:0", "target_precision": "float32", "draft_precision": "float32"}


@pytest.fixture(scope="module", autouse=True)
def _full_float32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.15), ("float16", 0.03)])
def test_forward_agrees_with_transformers(tiny_folder, arch, precision, tolerance):
    source = find_source(str(tiny_folder(arch)))
    device, dtype = torch.device("cuda:0"), getattr(torch, precision)
    spec = LoadSpec(arch, "target", source=source, config=read_config(source), device=device, precision=precision)
    stack = build_model(spec)
    reference = read_model(source, dtype, device)
    with torch.inference_mode():
        expected = reference(torch.tensor([IDS], device=device)).logits[0].float()
        stack.prefill(torch.tensor(IDS[:5], device=device))
        logits = stack.forward(torch.tensor(IDS[5:], device=device)).float()
    assert (logits - expected[5:]).norm() < tolerance * expected[5:].norm()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.mode}-{rule.check}")
@pytest.mark.parametrize("gamma", [4, "auto"])
def test_speculative_ids_are_those_of_the_target(tiny_folder, rule, gamma):
    folders = str(tiny_folder("llama", layers=6)), str(tiny_folder("llama", layers=6, seed=1))
    for drafter in folders:  # one that is always right, one that hardly ever is
        pair = load_pair(folders[0], drafter, draft=rule, **CUDA)
        config = replace(GREEDY, gamma=gamma)
        assert pair.generate(IDS, config).ids == pair.generate(IDS, config, "target").ids
        sampled = pair.generate(IDS, replace(config, temperature=1.0, seed=3))
        assert sampled.stats.new_tokens == GREEDY.max_new_tokens


@pytest.mark.parametrize("rule", RULES[::2], ids=lambda rule: f"{rule.mode}-{rule.check}")
def test_drafter_in_a_separate_process_drafts_ahead(tiny_folder, rule):
    folder = str(tiny_folder("qwen3", layers=6))
    pair = load_pair(folder, folder, draft=rule, overlap=True, **CUDA)
    try:
        expected = pair.generate(IDS, GREEDY, "target").ids
        for overlap in (False, True):
            assert pair.generate(IDS, replace(GREEDY, overlap=overlap)).ids == expected
        assert pair.generate(IDS, GREEDY, "drafter").ids == expected
    finally:
        pair.close()


def test_drafter_on_cpu_cores_with_a_target_on_the_gpu(tiny_folder):
    folder = str(tiny_folder("llama", layers=6))
    options = FLOAT32 | {"device": None, "target_device": "cuda:0", "draft_device": "cpu:0,cpu:1"}
    pair = load_pair(folder, folder, overlap=True, draft=DraftConfig("parallel", 0.3), **options)
    try:
        expected = pair.generate(IDS, GREEDY, "target").ids
        assert pair.generate(IDS, replace(GREEDY, overlap=True)).ids == expected
    finally:
        pair.close()


@pytest.mark.parametrize("rule", [RULES[0], STATIC], ids=["exact", "static"])
def test_graphs_give_the_same_ids(tiny_folder, rule):
    folder = str(tiny_folder("llama", layers=6))
    eager = load_pair(folder, folder, graphs="off", draft=rule, **FLOAT32)
    notes: list[str] = []
    fast = load_pair(folder, folder, graphs="on", draft=rule, on_progress=notes.append, **FLOAT32)
    for stack in (fast.target, fast.drafter):
        assert stack.static.backend == "compiled", notes
    for config in (GREEDY, replace(GREEDY, gamma=1), replace(GREEDY, gamma=15, max_new_tokens=60)):
        assert fast.generate(IDS, config).ids == eager.generate(IDS, config).ids


@pytest.mark.parametrize("longest_undivided", [1024, 32])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("arch", DENSE)
def test_fused_kernels_compute_what_the_stack_computes(tiny_model, monkeypatch, arch, precision, longest_undivided):
    monkeypatch.setattr(fused_forward, "MAX_UNDIVIDED", longest_undivided)
    model = tiny_model(arch, layers=2, dtype=torch.float32, hidden_size=1024, initializer_range=0.05).to("cuda:0")
    weights = read_weights(model, precision, torch.device("cuda:0"))
    plain, fast = DecoderStack(weights), DecoderStack(weights)
    fast.static = StaticForward(fast, (1, 2, 6, 16), backend="fused")
    with torch.inference_mode():
        for tokens in (400, 1, 2, 5, 6, 16, 1):
            ids = torch.randint(0, 256, (tokens,), device="cuda:0")
            expected, found = plain.forward(ids).float(), fast.forward(ids).float()
            assert (found - expected).norm() < 0.1 * expected.norm()
    assert fast.static.backend == "fused"
    fast.static = StaticForward(fast, (16,), backend="fused")
    assert count_differing_rows(fast) == 0


@pytest.mark.parametrize("arch", DENSE)
def test_greedy_text_is_bit_exact_in_bfloat16(tiny_folder, arch):
    folders = [str(tiny_folder(arch, layers=6, seed=seed, max_position_embeddings=1024)) for seed in (0, 1)]
    random = torch.Generator().manual_seed(0)
    for drafter in folders:
        pair = load_pair(folders[0], drafter, draft=RULES[0], **CUDA)
        assert count_differing_rows(pair.target) == 0
        for length in (3, 60, 500):  # the last text crosses the end of a block of the cache
            ids = torch.randint(0, 256, (length,), generator=random).tolist()
            config = replace(GREEDY, max_new_tokens=48)
            assert pair.generate(ids, config).ids == pair.generate(ids, config, "target").ids


@pytest.mark.parametrize("rule", [RULES[0], STATIC], ids=["exact", "static"])
def test_a_draft_waits_for_the_device_once(tiny_folder, rule):
    folder = str(tiny_folder("llama", layers=6))
    pair = load_pair(folder, folder, draft=rule, **CUDA)
    drafter = pair._drafting
    drafter.open(IDS, GREEDY)
    drafter.draft(IDS, 8)  # captures what is missing
    drafter.rewind_to_confirmed(IDS)
    (loop,) = pair.drafter.static.loops.values()
    ids = torch.tensor(IDS[pair.drafter.length :], device="cuda:0")
    blocks = drafter.engine.draft_blocks(exact_first=True)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits, torch.inference_mode():
            warnings.simplefilter("always")
            loop.draft(ids, 8, blocks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1, [str(wait.message) for wait in waits]


def test_target_device_auto_gives_the_same_ids(tiny_folder):
    folder = str(tiny_folder("qwen3", layers=6))
    expected = load_pair(folder, folder, **CUDA).generate(IDS, GREEDY, "target").ids
    pair = load_pair(folder, folder, **(CUDA | {"device": None, "target_device": "auto", "draft_device": "cuda:0"}))
    assert pair.generate(IDS, GREEDY).ids == expected
