"""Tiny random models of every supported architecture and a byte-level tokenizer, made without a network.

And a model that thinks as Qwen3 does: `save_thinking_model`.

The tiny vocabulary is the 256 bytes and three special tokens, so that any text can be encoded; the models' vocabulary
is padded beyond it, as real ones are.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pdevis.loading.weights.families import FAMILIES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENS = 256 + len(SPECIAL)
PADDED = 264
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS = TOKENS - 1  # <|im_end|>

# as Qwen3's: earlier thoughts are left out, enable_thinking = false puts an empty one into the prompt
THINKING_TEMPLATE = (
    "{% for m in messages %}{% set content = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# as that of models which always think: the prompt opens the thought
OPENING_TEMPLATE = THINKING_TEMPLATE.partition("{% if enable_thinking")[0] + "<think>{% endif %}"
THINKING_TOKENS = ("<think>", "</think>", "\n\n")  # of its tokenizer; no special ones, as in Qwen3
THOUGHT, ANSWER = "Hm", "B"  # what it thinks and answers

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "qwen3_next": {
        "head_dim": 16,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        **EXPERTS,
    },
}
DENSE = tuple(FAMILIES)  # those that run as a `DecoderStack`
ALL = tuple(ARCHITECTURES)


def make_config(arch: str, layers: int, **changes: Any) -> Any:
    settings = {
        "vocab_size": PADDED,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # large, so that the most probable token varies from place to place
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": EOS,
    }
    return AutoConfig.for_model(arch, **(settings | ARCHITECTURES[arch] | changes))


def make_model(
    arch: str = "llama", seed: int = 0, layers: int = 4, dtype: torch.dtype = torch.float64, **changes: Any
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = make_config(arch, layers, **changes)
        # The grouped kernels for experts know no float64.
        options = {"experts_implementation": "eager"} if "num_experts" in ARCHITECTURES[arch] else {}
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    return model.to(dtype).eval()


def make_tokenizer(special: tuple[str, ...] = SPECIAL, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[-1])
    wrapped.chat_template = chat_template
    return wrapped


def save_thinking_model(folder: Path, template: str = THINKING_TEMPLATE) -> Path:
    """Save a Qwen3 model that writes `<think>THOUGHT</think>`, an empty line and `ANSWER` after any prompt, and ends.

    The next token depends on the last one alone: attention and MLPs add nothing, and the output head maps the embedding
    of each token of this text to the next one. Without the thought in the prompt's end, it begins there.
    """
    tokenizer = make_tokenizer(chat_template=template)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINKING_TOKENS])
    tokenizer.save_pretrained(folder)
    model = make_model("qwen3", layers=3, dtype=torch.float32, tie_word_embeddings=False)
    text = f"\n<think>{THOUGHT}</think>\n\n{ANSWER}<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        head.zero_()
        for token, following in itertools.pairwise(ids):
            head[following] += embeddings[token]
    model.save_pretrained(folder)
    return folder
