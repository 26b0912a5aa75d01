"""The way in which a transformers model is run: the first that is exact, or none."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pdevis import DecodeConfig, load_pair
from pdevis.models.hf.hf_causal_lm import REPLAY, SEVERAL, SINGLE, HFCausalLM
from pdevis.models.hf.self_test import InexactModelError, find_way
from pdevis.util.validation import ModelLoadError

SMALL = {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
STATE = SMALL | {"state_size": 8, "pad_token_id": 2}
WITHOUT_KV_CACHE = {  # models whose state is not in the usual place, and the way that is exact for them
    "mamba": (STATE, SINGLE),
    "mamba2": (STATE | {"num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16}, SEVERAL),
    "falcon_mamba": (STATE, SINGLE),
    "rwkv": (SMALL | {"attention_hidden_size": 64, "intermediate_size": 96}, REPLAY),
    "openai-gpt": ({"vocab_size": 264, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}, REPLAY),
}
IDS = list(range(10, 31))


def model_of(arch: str, settings: dict, seed: int = 1):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **settings), dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(3.0)
    return model


@pytest.mark.parametrize("arch", WITHOUT_KV_CACHE)
def test_models_without_a_kv_cache_write_the_text_of_generate(arch, tiny_tokenizer, tmp_path):
    settings, way = WITHOUT_KV_CACHE[arch]
    model = model_of(arch, settings)
    model.generation_config.eos_token_id = None
    expected = model.generate(torch.tensor([IDS]), max_new_tokens=24, do_sample=False, pad_token_id=2)[0, len(IDS) :]
    for name, seed in (("target", 1), ("other", 2)):
        model_of(arch, settings, seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    lines: list[str] = []
    for drafter in ("self", str(tmp_path / "other")):
        precisions = {"target_precision": "float32", "draft_precision": "float32"}
        pair = load_pair(str(tmp_path / "target"), drafter, device="cpu", on_progress=lines.append, **precisions)
        assert pair.target.way == way
        for method in ("target", "speculative"):
            config = DecodeConfig(max_new_tokens=24, eos_ids=())
            assert pair.generate(IDS, config, method).ids == expected.tolist(), (drafter, method)
    notes = [line for line in lines if line.startswith("note: ")]
    assert bool(notes) == (way != SEVERAL)
    words = {SINGLE: "one token per forward", REPLAY: "every forward recomputes the whole text"}
    assert all(words[way] in note for note in notes)


def test_plain_models_run_several_tokens_at_once(tiny_model):
    for arch in ("qwen3_moe", "qwen3_next"):
        assert find_way(tiny_model(arch, dtype=torch.float32)) == SEVERAL


class Faulty:
    """A model whose forward is wrong under a condition; everything else is the model's own."""

    def __init__(self, model, is_wrong):
        self._model, self._forward = model, model.forward

        def forward(input_ids=None, past_key_values=None, use_cache=None, logits_to_keep=0, **options):
            known = past_key_values.get_seq_length() if past_key_values is not None else 0
            made = self._forward(
                input_ids=input_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **options,
            )
            if is_wrong(known, input_ids.shape[1], use_cache):
                made.logits = made.logits.flip(-1)
            return made

        model.forward = forward


@pytest.mark.parametrize(
    "is_wrong",
    [
        lambda known, new, cached: cached and known > 0 and new > 1,  # several tokens after others
        lambda known, new, cached: cached and known == 8,  # generate has this fault too, one token at a time
    ],
    ids=["several tokens at once", "generate"],
)
def test_a_wrong_state_is_noticed(tiny_model, is_wrong):
    model = tiny_model("qwen3_moe", dtype=torch.float32)
    Faulty(model, is_wrong)
    assert find_way(model) == SINGLE


def test_a_state_that_cannot_go_back_is_noticed(tiny_model, monkeypatch):
    """Rewinding does nothing: only forwards without a cache are right then."""
    model = tiny_model("qwen3_moe", dtype=torch.float32)
    monkeypatch.setattr(HFCausalLM, "_crop", lambda self, layers, length: None)
    assert find_way(model) == REPLAY


def test_a_model_that_generate_does_not_agree_with_is_refused(tiny_model, tiny_folder, monkeypatch):
    """Dropout that is never off: every forward is another one."""
    model = tiny_model("qwen3_moe", dtype=torch.float32)
    forward = model.forward

    def noisy(*args, **options):
        made = forward(*args, **options)
        made.logits = made.logits + torch.randn_like(made.logits)
        return made

    model.forward = noisy
    with pytest.raises(InexactModelError, match="do not give the logits of its own generate"):
        find_way(model)
    monkeypatch.setattr("pdevis.models.hf.self_test.WAYS", ())
    with pytest.raises(ModelLoadError, match=r"model = '.*': Qwen3MoeForCausalLM is not supported: its forwards"):
        load_pair(str(tiny_folder("qwen3_moe")), device="cpu")


def test_a_model_whose_generate_fails_is_refused(tiny_model):
    model = tiny_model("qwen3_moe", dtype=torch.float32)

    def fail(*args, **options):
        raise RuntimeError("Input language unknown.\nmore")

    model.forward = fail
    with pytest.raises(InexactModelError, match=r"its own generate\(\) fails: Input language unknown\.\Z"):
        find_way(model)
