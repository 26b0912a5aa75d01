"""Models without weights: the published dimensions of each catalog model, random numbers, and a tokenizer of bytes.

`random:KEY` is such a model wherever a model is named. It needs no network and writes nonsense, but its forward passes
cost what those of the real model cost, so speed, memory and exactness of models can be measured that are not at hand.

    python evaluation/speed/evaluate_speed.py --target_model random:llama-1b --gammas 4 --without transformers
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import transformers  # its classes are looked up when they are used: importing them takes seconds
from torch import Tensor

from pdevis.loading.catalog import PUBLISHED_CONFIGS
from pdevis.loading.weights.families import EMBEDDING, HEAD, family_config, unsupported_reason, weight_shapes

STANDARD_DEVIATION = 0.02  # of matrices; published configs call it initializer_range
END = "<|end|>"
SPECIAL_TOKENS = ("<|begin|>", END, "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "<|begin|>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def random_family_config(key: str) -> Any | None:
    """Return the published config of a catalog model; None if only transformers' class can read it."""
    return family_config(dict(PUBLISHED_CONFIGS[key]), f"random:{key}")


def random_class_config(key: str) -> Any:
    """Return the published config of a catalog model as an instance of transformers' class for it."""
    values = dict(PUBLISHED_CONFIGS[key])
    return transformers.AutoConfig.for_model(values.pop("model_type"), **values, name_or_path=f"random:{key}")


def make_random_model(key: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Make the transformers model of a catalog key, in eval mode: with `RandomTensors` if the family is supported."""
    config = random_class_config(key)
    with device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if not unsupported_reason(config):
        tensors = RandomTensors(config, dtype, device)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(tensors.tensor(name))
    return model.eval()


class RandomTensors:
    """Random weights of a supported family, a `TensorSource`: matrices normal, biases 0, norms 1.

    A weight is the same in each process on the same kind of device: it depends on name and shape alone.

    Args:
        config: of the model.
        dtype: of the weights.
        device: where they are made.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._shapes = weight_shapes(config)
        self._tied = config.tie_word_embeddings
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}

    def names(self) -> Iterable[str]:
        return self._shapes.keys()

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return torch.zeros(shape, **self._options)
        if len(shape) == 1:
            return torch.ones(shape, **self._options)
        if self._tied and name == f"{HEAD}.weight":
            name = f"{EMBEDDING}.weight"
        generator = torch.Generator(self._options["device"])
        generator.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little"))
        return torch.empty(shape, **self._options).normal_(0, STANDARD_DEVIATION, generator=generator)

    def release(self, prefix: str) -> None:
        """Do nothing: a weight is made anew each time."""


def byte_tokenizer() -> Any:
    """Return a tokenizer whose tokens are bytes and `SPECIAL_TOKENS`, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: id for id, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast
