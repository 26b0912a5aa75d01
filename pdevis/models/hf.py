"""HFCausalLM: any transformers causal language model as a `CausalLM`.

Plain key/value layers are rewound with the library's `crop`. Layers that cannot be cropped exactly (recurrent states of
a gated delta net, sliding windows) are copied before each forward; a rewind restores the copy, and the tokens between
the copy and the rewind's target are replayed at the start of the next forward. So a rewind costs no extra forward.

Shapes: T = tokens of this call, V = vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pdevis.models.causal_lm import CHUNK


class HFCausalLM:
    """A loaded transformers model in eval mode, with its own cache."""

    def __init__(self, model: Any, precision: str) -> None:
        self.model = model
        self.precision = precision
        self.tokens: list[int] = []
        self.device = model.get_input_embeddings().weight.device
        text = model.config.get_text_config()
        self.vocab_size = text.vocab_size
        self.context_length = getattr(text, "max_position_embeddings", None) or 1 << 30
        self._restart([])

    @property
    def length(self) -> int:
        return len(self._ids)

    def forward(self, ids: Tensor) -> Tensor:
        return self._run(ids, len(ids))

    @property
    def num_layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    def prefill(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK):
            self._run(chunk, 1)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length, f"rewind to {length} of {self.length} tokens"
        if length < self.length - len(self._replay):
            self._rewind_cache(length)
        elif length < self.length:
            del self._replay[length - self.length :]
        del self._ids[length:]

    def _run(self, ids: Tensor, keep: int) -> Tensor:
        """Run the tokens to replay and ids; return the logits [keep, V] of the last `keep` of them."""
        while len(self._replay) > CHUNK:  # a long history after a restart
            self._forward(self._replay[:CHUNK], 1)
            del self._replay[:CHUNK]
        new = ids.tolist()
        logits = self._forward(self._replay + new, keep)
        self._replay = []
        self._ids += new
        return logits

    @torch.inference_mode()
    def _forward(self, ids: list[int], keep: int) -> Tensor:
        self._saved_at = self.length - len(self._replay)
        self._saved = {i: copy.deepcopy(layer) for i, layer in enumerate(self._cache.layers) if not _croppable(layer)}
        batch = torch.tensor([ids], device=self.device)
        try:
            return self.model(batch, past_key_values=self._cache, use_cache=True, logits_to_keep=keep).logits[0]
        except BaseException:  # out of memory or Ctrl-C: some layers may hold this call's tokens, others not
            self._restart(self._ids)
            raise

    def _rewind_cache(self, length: int) -> None:
        cached = self.length - len(self._replay)
        all_croppable = all(_croppable(layer) for layer in self._cache.layers)
        if length == 0 or (not all_croppable and (length < self._saved_at or self._saved_at == 0)):
            self._restart(self._ids[:length])
            return
        keep = length if all_croppable else self._saved_at
        for i, layer in enumerate(self._cache.layers):
            if _croppable(layer):
                layer.crop(keep - cached)
            else:
                self._cache.layers[i] = self._saved[i]
        self._replay = self._ids[keep:length]

    def _restart(self, ids: list[int]) -> None:
        """Empty the cache; the next forward recomputes `ids`."""
        self._ids = ids.copy()
        self._replay = ids.copy()
        self._cache = DynamicCache(config=self.model.config)
        self._saved: dict[int, Any] = {}
        self._saved_at = 0


def _croppable(layer: Any) -> bool:
    return type(layer) is DynamicLayer
