"""The decoders of other libraries: same prompt, same number of tokens, no state from call to call."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pdevis import load_pair
from pdevis.benchmarks.speed.baselines import (
    Baselines,
    llama_cpp_generate,
    load_baselines,
    transformers_assisted,
    transformers_generate,
    unavailable,
)
from pdevis.benchmarks.speed.decoders import measure, plain

PROMPT = list(range(60, 100))
MODELS = ("generate", "assisted", "assisted-fixed", "lookup")


def load(keys, pair, models, gguf=None) -> Baselines:
    """Load baselines with γ = 2."""
    context = 80 if gguf else 64
    return load_baselines(keys, pair, models=models, gamma=2, gguf=gguf, context=context, on_progress=lambda line: None)


@pytest.fixture
def models(tiny_model):
    return tiny_model("llama", dtype=torch.float32), tiny_model("llama", 1, 2, torch.float32)


def test_eos_does_not_end_a_text(models, monkeypatch):
    target, _ = models
    first = transformers_generate(target)(PROMPT, 12)[0]
    target.generation_config.eos_token_id = first[3]
    assert transformers_generate(target)(PROMPT, 12)[0] == first
    assert len(first) == 12


@pytest.mark.parametrize("gamma", [None, 3])
def test_assisted_generation_starts_from_the_same_settings_each_time(models, gamma, monkeypatch):
    target, drafter = models
    drafter.generation_config.num_assistant_tokens_schedule = "heuristic"
    drafter.generation_config.num_assistant_tokens = 6
    seen = []
    true = target.generate

    def generate(*args, **options):
        config = options["assistant_model"].generation_config
        names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
        seen.append(tuple(getattr(config, name) for name in names))
        return true(*args, **options)

    monkeypatch.setattr(target, "generate", generate)
    run = transformers_assisted(target, drafter, tokenizers={}, gamma=gamma)
    texts = [run(PROMPT, 12)[0] for _ in range(2)]
    assert texts[0] == texts[1] == transformers_generate(target_without_spy(target, true))(PROMPT, 12)[0]
    assert seen == [(3, "constant", 0.0) if gamma else (6, "heuristic", None)] * 2


def target_without_spy(target, true):
    return SimpleNamespace(device=target.device, generate=true)


def test_exactly_gamma_tokens_are_drafted_per_round(models, monkeypatch):
    target, drafter = models
    asked = []
    true = drafter.generate

    def generate(*args, **options):
        out = true(*args, **options)
        asked.append((options["max_new_tokens"], out.sequences.shape[1] - options["input_ids"].shape[1]))
        return out

    monkeypatch.setattr(drafter, "generate", generate)
    transformers_assisted(target, drafter, tokenizers={}, gamma=3)(PROMPT, 12)
    assert asked[0] == (3, 3)
    assert all(wanted == made <= 3 for wanted, made in asked)


@pytest.mark.parametrize("vocab", [264, 272])
def test_all_baselines_write_what_plain_decoding_writes(tiny_folder, vocab):
    """Also if the drafter's padded vocabulary differs, for which transformers needs both tokenizers."""
    names = (str(tiny_folder("llama")), str(tiny_folder("llama", 1, 2, vocab_size=vocab)))
    pair = load_pair(*names, device="cpu")
    baselines = load((*MODELS, "draft-step"), pair, names)
    assert len(baselines.decoders) == 4
    measured = measure([plain(pair), *baselines.decoders], PROMPT, length=10, prompt_number=0)
    assert len({tuple(result["ids"]) for result in measured.values()}) == 1
    assert baselines.drafter.config.num_hidden_layers == 2


def test_a_repetition_penalty_of_the_target_is_not_applied(tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 5.0}')
    pair = load_pair(str(folder), device="cpu")
    baselines = load(("generate",), pair, (str(folder), "self"))
    measured = measure([plain(pair), *baselines.decoders], PROMPT, length=16, prompt_number=0)
    assert len({tuple(result["ids"]) for result in measured.values()}) == 1


class FakeLlama:
    """The methods of llama-cpp-python's `Llama` that are used here; it counts upwards."""

    made: list

    def __init__(self, **options):
        self.options, self.calls = options, []
        FakeLlama.made.append(self)

    def n_vocab(self):
        return 300

    def reset(self):
        self.calls.append("reset")

    def generate(self, tokens, **options):
        self.calls.append((list(tokens), options))
        token = tokens[-1]
        while True:
            token += 1
            yield token


@pytest.fixture
def llama(monkeypatch):
    FakeLlama.made = []
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=FakeLlama))


def test_llama_cpp_reads_the_whole_prompt_each_time_and_is_greedy(llama, tmp_path):
    run = llama_cpp_generate(tmp_path / "m.gguf", context=80, vocabulary=259)
    assert run([5, 6], 3) == ([7, 8, 9], None)
    model = FakeLlama.made[0]
    assert model.options["n_threads"] == torch.get_num_threads()
    assert model.options["n_ctx"] == 80
    assert model.calls[0] == "reset"
    assert model.calls[1] == ([5, 6], {"temp": 0.0, "top_k": 1, "repeat_penalty": 1.0})


def test_ids_of_llama_cpp_are_not_compared(llama, tiny_folder, tmp_path):
    name = str(tiny_folder("llama"))
    pair = load_pair(name, device="cpu")
    baselines = load(("llama.cpp",), pair, (name, "self"), tmp_path / "m.gguf")
    assert [(decoder.name, decoder.compared) for decoder in baselines.decoders] == [("llama.cpp, m.gguf", False)]


def test_a_file_of_another_model_is_left_out(llama, monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setattr(FakeLlama, "n_vocab", lambda self: 100)
    name = str(tiny_folder("llama"))
    pair = load_pair(name, device="cpu")
    baselines = load(("llama.cpp",), pair, (name, "self"), tmp_path / "m.gguf")
    assert baselines.decoders == []
    assert "another model" in baselines.left_out["llama.cpp, m.gguf"]


def test_unavailable_baselines(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setattr("pdevis.benchmarks.speed.baselines.find_spec", lambda name: None)
    assert unavailable(True, tmp_path / "m.gguf") == {"llama.cpp": "llama-cpp-python is not installed"}
    assert set(unavailable(False, None)) == {"assisted", "assisted-fixed", "llama.cpp"}
