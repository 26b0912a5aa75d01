"""The other libraries as contestants: same prompt, same number of tokens, nothing left behind from call to call."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pdevis import load_pair
from pdevis.benchmarks.speed.baselines import assisted_run, llama_cpp_run, load_peers, transformers_run, unavailable
from pdevis.benchmarks.speed.decoders import measure, plain

PROMPT = list(range(60, 100))
MODELS = ("generate", "assisted", "assisted-fixed", "lookup")


@pytest.fixture
def models(tiny_model):
    return tiny_model("llama", dtype=torch.float32), tiny_model("llama", 1, 2, torch.float32)


def test_eos_does_not_end_a_text(models, monkeypatch):
    target, _ = models
    first = transformers_run(target)(PROMPT, 12)[0]
    target.generation_config.eos_token_id = first[3]
    assert transformers_run(target)(PROMPT, 12)[0] == first
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
    run = assisted_run(target, drafter, {}, gamma)
    texts = [run(PROMPT, 12)[0] for _ in range(2)]
    assert texts[0] == texts[1] == transformers_run(target_without_spy(target, true))(PROMPT, 12)[0]
    assert seen == [(3, "constant", 0.0) if gamma else (6, "heuristic", None)] * 2


def target_without_spy(target, true):
    return SimpleNamespace(device=target.device, generate=true)


def test_exactly_gamma_tokens_are_drafted_a_round(models, monkeypatch):
    target, drafter = models
    asked = []
    true = drafter.generate

    def generate(*args, **options):
        out = true(*args, **options)
        asked.append((options["max_new_tokens"], out.sequences.shape[1] - options["input_ids"].shape[1]))
        return out

    monkeypatch.setattr(drafter, "generate", generate)
    assisted_run(target, drafter, {}, 3)(PROMPT, 12)
    assert asked[0] == (3, 3)
    assert all(wanted == made <= 3 for wanted, made in asked)


@pytest.mark.parametrize("vocab", [264, 272])
def test_all_peers_write_what_plain_decoding_writes(tiny_folder, vocab):
    """With another padded vocabulary for the drafter too, where transformers wants both tokenizers."""
    names = (str(tiny_folder("llama")), str(tiny_folder("llama", 1, 2, vocab_size=vocab)))
    pair = load_pair(*names, device="cpu")
    peers = load_peers((*MODELS, "draft-step"), pair, names, 2, None, 64, lambda line: None)
    assert len(peers.contestants) == 4
    found = measure([plain(pair), *peers.contestants], PROMPT, 10, 0)
    assert len({tuple(each["ids"]) for each in found.values()}) == 1
    assert peers.drafter.config.num_hidden_layers == 2


def test_a_repetition_penalty_of_the_target_is_not_applied(tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 5.0}')
    pair = load_pair(str(folder), device="cpu")
    peers = load_peers(("generate",), pair, (str(folder), "self"), 2, None, 64, lambda line: None)
    found = measure([plain(pair), *peers.contestants], PROMPT, 16, 0)
    assert len({tuple(each["ids"]) for each in found.values()}) == 1


class FakeLlama:
    """What llama-cpp-python's `Llama` offers of what is used here; it counts upwards."""

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
    run = llama_cpp_run(tmp_path / "m.gguf", 80, 259)
    assert run([5, 6], 3) == ([7, 8, 9], None)
    model = FakeLlama.made[0]
    assert model.options["n_threads"] == torch.get_num_threads()
    assert model.options["n_ctx"] == 80
    assert model.calls[0] == "reset"
    assert model.calls[1] == ([5, 6], {"temp": 0.0, "top_k": 1, "repeat_penalty": 1.0})


def test_llama_cpp_is_a_contestant_whose_ids_are_not_compared(llama, tiny_folder, tmp_path):
    name = str(tiny_folder("llama"))
    pair = load_pair(name, device="cpu")
    peers = load_peers(("llama.cpp",), pair, (name, "self"), 2, tmp_path / "m.gguf", 80, lambda line: None)
    assert [(each.name, each.compared) for each in peers.contestants] == [("llama.cpp, m.gguf", False)]


def test_a_file_of_another_model_is_left_out(llama, monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setattr(FakeLlama, "n_vocab", lambda self: 100)
    name = str(tiny_folder("llama"))
    pair = load_pair(name, device="cpu")
    peers = load_peers(("llama.cpp",), pair, (name, "self"), 2, tmp_path / "m.gguf", 80, lambda line: None)
    assert peers.contestants == []
    assert "another model" in peers.left_out["llama.cpp, m.gguf"]


def test_who_cannot_take_part(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setattr("pdevis.benchmarks.speed.baselines.find_spec", lambda name: None)
    assert unavailable(False, tmp_path / "m.gguf") == {"llama.cpp": "llama-cpp-python is not installed"}
    assert set(unavailable(True, None)) == {"assisted", "assisted-fixed", "llama.cpp"}
