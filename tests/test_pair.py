"""The public API: loading a pair, prompts, streams of text, and errors."""

import json
import os
import re
import subprocess
import sys
import venv

import numpy as np
import pytest
import torch

import pdevis
from helpers import ROOT
from pdevis import DecodeConfig, DraftConfig, SpeculativePair, load_pair
from pdevis.models.hf.hf_causal_lm import HFCausalLM
from pdevis.models.stack import DecoderStack

TEN = DecodeConfig(max_new_tokens=10, eos_ids=())
EXACT = {"target_precision": "float64", "draft_precision": "float64"}


@pytest.fixture(scope="module")
def pair(tiny_folder) -> SpeculativePair:
    target, drafter = tiny_folder("llama"), tiny_folder("qwen2", seed=1)
    return load_pair(str(target), str(drafter), device="cpu", **EXACT)


@pytest.mark.parametrize("method", ["speculative", "target", "drafter"])
def test_generate_and_stream_agree(pair, method):
    made = pair.generate("Why?", TEN, method)
    stream = pair.stream("Why?", TEN, method)
    events = list(stream)
    assert [event.id for event in events] == made.ids == stream.ids
    assert len(made.ids) == 10
    assert "".join(event.text for event in events) == made.text == stream.text
    assert made.stats.method == method


def test_speculative_text_is_the_targets(pair):
    assert pair.generate("Why?", TEN).ids == pair.generate("Why?", TEN, "target").ids
    assert pair.generate("Why?", TEN, "drafter").ids != pair.generate("Why?", TEN, "target").ids


def test_prompts_as_text_messages_and_ids(pair):
    messages = [{"role": "user", "content": "Why?"}]
    ids = pair.encode("Why?")
    assert ids == pair.encode(messages) == pair.encode(ids)
    assert pair.encode("Why?", chat=False) == [int(i) for i in pair.tokenizer("Why?")["input_ids"]]
    assert len(ids) > len(pair.encode("Why?", chat=False))
    assert pair.generate(messages, TEN).ids == pair.generate(ids, TEN).ids


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["empty"]),
        ("  \n", ["empty"]),
        ([], ["empty"]),
        ([5, 999999], ["999999", "264"]),
        ([-1], ["-1"]),
        (None, ["None", "text"]),
        (123, ["prompt = 123", "must be a string, messages", "token ids"]),
        (2.5, ["prompt = 2.5", "token ids"]),
        (b"hello", ["prompt = b'hello'", "token ids"]),
        ({"role": "user", "content": "Hi"}, ["prompt = {'role'", "messages"]),
        (torch.ones(2, 5, dtype=torch.long), ["prompt of shape (2, 5)", "[1, T]"]),
        (torch.tensor(5), ["prompt of shape ()", "[T]"]),
        (np.int64(5), ["prompt of shape ()", "[T]"]),
        (torch.tensor([1.5]), ["1.5", "token ids"]),
        (np.zeros((1, 0), dtype=int), ["empty"]),
        (["hello"], ["'hello'", "role"]),
        ([1, "a"], ["1", "token ids"]),
        ([{"role": "user"}], ["user", "content"]),
        ("broken \ud800 text", ["tokenizer refuses"]),
    ],
)
def test_wrong_prompts(pair, prompt, words):
    with pytest.raises(ValueError) as caught:
        pair.generate(prompt, TEN)
    assert all(word in str(caught.value) for word in words)


def test_a_prompt_longer_than_the_context(pair):
    with pytest.raises(ValueError, match=r"600 tokens.*512"):
        pair.generate([1] * 600, TEN)
    with pytest.raises(ValueError, match=r"512 tokens.*512"):
        pair.generate([1] * 512, TEN)
    assert pair.generate([1] * 511, TEN).stats.stop_reason == "context"


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, lambda ids: np.array(ids, dtype=np.uint16)])
def test_ids_from_arrays_and_tensors(pair, make):
    ids = pair.encode("Why?")
    assert pair.encode(make(ids)) == ids
    assert json.dumps(pair.encode(make(ids)))
    if make is not tuple:
        assert pair.generate(make([ids]), TEN).ids == pair.generate(ids, TEN).ids


def test_settings_as_keywords(pair):
    made = pair.generate("Why?", max_new_tokens=10, eos_ids=())
    assert made.ids == pair.generate("Why?", TEN).ids
    assert pair.generate("Why?", TEN, "target", max_new_tokens=3).ids == made.ids[:3]
    assert [event.id for event in pair.stream("Why?", TEN, max_new_tokens=2)] == made.ids[:2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pair: pair.generate("Why?", {"gamma": 3}), r"config = {'gamma': 3}: must be a DecodeConfig, as Decode"),
        (lambda pair: pair.generate("Why?", "target"), r"config = 'target': must be a DecodeConfig$"),
        (
            lambda pair: pair.generate("Why?", max_tokens=3),
            r"max_tokens = 3: .*; did you mean max_new_tokens",
        ),
        (lambda pair: pair.generate("Why?", zzz=3), r"zzz = 3: no setting of a generation; must be one of max_new_tok"),
        (lambda pair: pair.generate("Why?", gamma=0), r"gamma = 0: must be an integer >= 1"),
        (lambda pair: pair.configure({"mode": "skip"}), r"draft = {'mode': 'skip'}: must be a DraftConfig, as Draft"),
        (lambda pair: load_pair("smollm2-135m", draft={}), r"draft = {}: must be a DraftConfig"),
        (
            lambda pair: load_pair("smollm2-135m", profile={}),
            r"profile = {}: must be a Profile or the name of a",
        ),
        (lambda pair: load_pair(123), r"model = 123: must be one of "),
    ],
)
def test_values_of_another_kind_are_one_line(pair, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(pair)
    assert "\n" not in str(caught.value)


def test_a_pair_is_closed_at_the_end_of_a_block(tiny_folder):
    with load_pair(str(tiny_folder("llama")), draft_device="cpu:0", target_device="cpu") as pair:
        assert pair.generate("Why?", max_new_tokens=2).ids
        workers = pair.workers
        assert workers.alive
    assert not workers.alive
    with pytest.raises(RuntimeError, match="mine"), load_pair(str(tiny_folder("llama")), device="cpu"):
        raise RuntimeError("mine")


def test_the_package_lists_its_public_names_and_loads_them_when_they_are_used():
    code = "import sys, pdevis; print(pdevis.__version__, *dir(pdevis)); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    names, loaded = run.stdout.splitlines()
    assert names.split() == [pdevis.__version__, *sorted(pdevis.__all__)]
    assert loaded == "False"
    assert set(pdevis.__all__) == {*pdevis._MODULES, "__version__"}
    assert all(getattr(pdevis, name) is not None for name in pdevis.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = pdevis.load


def test_documented_python_passes_strict_type_checks_from_another_folder(tmp_path):
    """In an environment that has nothing but this package, as mypy finds an installed one: torch takes it a minute."""
    pytest.importorskip("mypy")
    assert 'pdevis = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
    blocks = [
        block
        for page in ("README.md", "docs/decoding.md", "docs/architecture.md")
        for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    ]
    assert len(blocks) >= 3
    for number, block in enumerate(blocks):
        (tmp_path / f"example{number}.py").write_text(block, encoding="utf-8")
    wrong = "from pdevis import load_pair\n\nload_pair('a').generate(123)\nload_pair('a').generate('b').idz\n"
    (tmp_path / "wrong.py").write_text(wrong)
    venv.create(tmp_path / "venv")
    python = next((tmp_path / "venv").glob("bin/python3"))
    (packages,) = (tmp_path / "venv").rglob("site-packages")
    (packages / "pdevis.pth").write_text(f"{ROOT}\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    files = [*(f"example{number}.py" for number in range(len(blocks))), "wrong.py"]
    run = subprocess.run([*command, *files], cwd=tmp_path, env=environment, capture_output=True, text=True)
    errors = [line.partition(": error: ")[::2] for line in run.stdout.splitlines() if ": error: " in line]
    assert [place for place, _ in errors] == ["wrong.py:3", "wrong.py:4"], run.stdout + run.stderr


def test_ids_that_only_the_target_knows(tiny_folder):
    pair = load_pair(str(tiny_folder("llama", vocab_size=300)), str(tiny_folder("qwen2")), device="cpu")
    assert pair.generate([5, 290], TEN).ids == pair.generate([5, 290], TEN, "target").ids
    with pytest.raises(ValueError, match=r"290.*264"):
        pair.generate([5, 290], TEN, "drafter")


def test_unknown_method(pair):
    with pytest.raises(ValueError, match=r"'fast'.*speculative"):
        pair.generate("Why?", TEN, method="fast")


def test_eos_comes_from_the_generation_config(pair, tiny_folder):
    assert pair.eos_ids
    truth = pair.generate("Why?", TEN).ids
    pair.eos_ids, before = (truth[3],), pair.eos_ids
    made = pair.generate("Why?", DecodeConfig(max_new_tokens=10))
    pair.eos_ids = before
    assert made.ids == truth[: truth.index(truth[3]) + 1]
    assert made.stats.stop_reason == "eos"


def test_a_new_generation_closes_the_previous_one(pair):
    first = pair.stream("Why?", TEN)
    next(first)
    assert pair.generate("What?", TEN).ids == pair.generate("What?", TEN, "target").ids
    assert list(first) == []


def test_an_abandoned_stream(pair):
    truth = pair.generate("Why?", TEN).ids
    stream = pair.stream("Why?", TEN)
    next(stream)
    stream.close()
    del stream
    assert pair.generate("Why?", TEN).ids == truth


def test_configure_changes_the_rule_and_not_the_text(pair):
    truth = pair.generate("Why?", TEN).ids
    assert pair.mode == "exact"
    pair.configure(DraftConfig(mode="skip", threshold=-1.1, keep_first=1))
    made = pair.generate("Why?", TEN)
    assert (pair.mode, made.stats.mode) == ("skip", "skip")
    assert made.stats.mean_skip > 0
    assert made.ids == truth
    pair.configure(DraftConfig())


def test_describe_is_json(pair):
    described = json.loads(json.dumps(pair.describe()))
    assert described["mode"] == "exact"
    assert described["target_precision"] == "float64"
    assert described["target_device"] == "cpu"


def test_sampling_repeats_with_a_seed(pair):
    hot = DecodeConfig(max_new_tokens=20, temperature=1.5, seed=4, eos_ids=())
    assert pair.generate("Why?", hot).ids == pair.generate("Why?", hot).ids


def test_self_shares_the_weights_if_the_formats_are_the_same(tiny_folder):
    folder = str(tiny_folder("qwen3"))
    same = load_pair(folder, device="cpu", **EXACT)
    assert same.drafter.weights is same.target.weights
    assert same.generate("Why?", TEN).stats.acceptance_rate == 1
    other = load_pair(folder, device="cpu", target_precision="float32", draft_precision="float64")
    assert (other.target.weights.dtype, other.drafter.weights.dtype) == (torch.float32, torch.float64)
    assert other.generate("Why?", TEN).ids == other.generate("Why?", TEN, "target").ids


@pytest.mark.parametrize("arch", ["qwen3_moe", "qwen3_next"])
def test_other_families_run_through_transformers(tiny_folder, arch):
    pair = load_pair(str(tiny_folder(arch)), str(tiny_folder("qwen3")), device="cpu")
    assert isinstance(pair.target, HFCausalLM)
    assert isinstance(pair.drafter, DecoderStack)
    assert pair.describe()["target_precision"] == "float32"
    assert pair.generate("Why?", TEN).ids == pair.generate("Why?", TEN, "target").ids
    own = load_pair(str(tiny_folder(arch)), device="cpu")
    assert own.generate("Why?", TEN).stats.acceptance_rate > 0.5


def test_modes_need_a_drafter_with_sublayers(tiny_folder):
    with pytest.raises(ValueError, match=r"mode = 'skip': needs a drafter whose layers pdevis runs itself"):
        load_pair(
            str(tiny_folder("qwen3")), str(tiny_folder("qwen3_moe")), device="cpu", draft=DraftConfig(mode="skip")
        )


def test_formats_that_an_architecture_does_not_have(tiny_folder):
    with pytest.raises(ValueError, match=r"target_precision = 'int8'.*qwen3_moe"):
        load_pair(str(tiny_folder("qwen3_moe")), str(tiny_folder("qwen3")), device="cpu", target_precision="int8")


def test_tokenizers_that_differ_are_refused(tiny_folder, tiny_tokenizer, tmp_path):
    tiny_tokenizer(special=("<a>", "<b>", "<c>")).save_pretrained(tmp_path)
    for file in tiny_folder("qwen2").iterdir():
        if not (tmp_path / file.name).exists():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"different tokenizers.*<a>"):
        load_pair(str(tiny_folder("llama")), str(tmp_path), device="cpu")


def test_no_chat_template_says_what_to_do(tiny_folder, tiny_tokenizer, tmp_path):
    for file in tiny_folder("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer(chat_template=None).save_pretrained(tmp_path)
    pair = load_pair(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="chat=False"):
        pair.encode("Why?")
    assert pair.encode("Why?", chat=False)


def test_a_smaller_draft_vocabulary_changes_proposals_only(tiny_folder):
    folder = str(tiny_folder("llama"))
    whole = load_pair(folder, device="cpu")
    small = load_pair(folder, device="cpu", draft_vocab=40)
    assert small.describe()["draft_vocab"] == 40
    for config in (
        DecodeConfig(max_new_tokens=24, eos_ids=()),
        DecodeConfig(max_new_tokens=24, eos_ids=(), temperature=1.0, seed=3),
    ):
        drawn = small.generate("hello", config)
        assert drawn.stats.drafted
        assert set(small.generate("hello", config, "drafter").ids) <= set(range(40))
        if config.greedy:
            assert drawn.ids == whole.generate("hello", config, "target").ids
    assert max(whole.generate("hello", DecodeConfig(max_new_tokens=24, eos_ids=()), "drafter").ids) >= 40


@pytest.mark.parametrize(("value", "words"), [(0, ">= 1"), (2.5, "an integer")])
def test_a_wrong_draft_vocabulary(tiny_folder, value, words):
    with pytest.raises(ValueError, match=f"draft_vocab.*{words}"):
        load_pair(str(tiny_folder("llama")), device="cpu", draft_vocab=value)


def test_a_draft_vocabulary_needs_a_known_family(tiny_folder):
    with pytest.raises(ValueError, match="draft_vocab"):
        load_pair(str(tiny_folder("qwen3_moe")), device="cpu", draft_vocab=100)
