"""HFCausalLM: any transformers causal language model as a `CausalLM`.

Plain key/value layers are rewound with the library's `crop`. Layers that cannot be cropped exactly (recurrent states,
sliding windows) are copied before each forward; a rewind restores a copy, and the tokens between the copy and the
rewind's target are replayed at the start of the next forward. So a rewind costs no extra forward.

Not every model can be run like that. `self_test.py` finds the first of these ways that is exact:

    SEVERAL   several tokens per forward
    SINGLE    the prompt in one forward, then one token per forward, as transformers' `generate` does
    REPLAY    no cache: every forward recomputes the whole text

Rotary embeddings whose frequencies depend on the length: see length_switch.py.

Shapes: T = tokens of this call, V = vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pdevis.models.causal_lm import CHUNK
from pdevis.models.hf.length_switch import LengthSwitch, find_length_switch
from pdevis.models.rope_config import native_context

SEVERAL, SINGLE, REPLAY = "several", "single", "replay"
WAYS = (SEVERAL, SINGLE, REPLAY)
NOTES = {
    SINGLE: "runs one token per forward: after several tokens at once its state is not exact",
    REPLAY: "runs without a cache, since none can be continued exactly: every forward recomputes the whole text",
}
CACHE_ARGUMENTS = ("past_key_values", "cache_params")  # the second: models without attention


class HFCausalLM:
    """A loaded transformers model in eval mode, with its own cache.

    Args:
        model: of transformers.
        precision: name of its weight format, for display.
        way: one of `WAYS`.
    """

    def __init__(self, model: Any, precision: str, way: str = SEVERAL) -> None:
        self.model = model
        self.precision = precision
        self.way = way
        self.device = model.get_input_embeddings().weight.device
        self.vocab_size = model.config.get_text_config().vocab_size
        self.context_length = native_context(model.config) or 1 << 30
        self._cache_argument = cache_argument(model)
        arguments = inspect.signature(model.forward).parameters
        self._keeps_logits, self._takes_positions = "logits_to_keep" in arguments, "position_ids" in arguments
        assert way == REPLAY or self._cache_argument, "a model without a cache can only be replayed"
        self._switch: LengthSwitch | None = find_length_switch(model)
        self._tokens: list[int] = []
        self._prompt = 0  # tokens that must be in the first forward together; 0: it does not matter
        self._restart([])

    def with_own_cache(self) -> HFCausalLM:
        """Return another model with the same weights."""
        return HFCausalLM(self.model, self.precision, self.way)

    @property
    def length(self) -> int:
        return len(self._ids)

    @property
    def note(self) -> str | None:
        """A remark for the user on the way in which the model runs; None if there is nothing to say."""
        return NOTES.get(self.way)

    @property
    def num_layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def tokens(self) -> list[int]:
        return self._tokens

    @tokens.setter
    def tokens(self, ids: list[int]) -> None:
        # Entries beyond a switch depend on the length of the prompt that they were computed for.
        reusable = self._switch is None or len(ids) < self._switch.length
        self._tokens = ids if reusable else []

    def forward(self, ids: Tensor) -> Tensor:
        return self._run(ids.tolist(), len(ids))

    def prefill(self, ids: Tensor) -> None:
        new = ids.tolist()
        if self.way != SEVERAL or self._beyond_switch(self.length + len(new) + 1):
            # The whole prompt in one forward, the next one, as `generate` does.
            self._restart(self._ids + new)
            self._prompt = self.length + 1
            return
        for start in range(0, len(new), CHUNK):
            self._run(new[start : start + CHUNK], 1)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length, f"rewind to {length} of {self.length} tokens"
        if length < self._cached:
            self._rewind_cache(length)
        elif length < self.length:
            del self._replay[length - self.length :]
        del self._ids[length:]
        self._prompt = min(self._prompt, length + 1)

    # ---- forwards ----

    @property
    def _cached(self) -> int:
        """Tokens in the cache itself: those to replay are not."""
        return len(self._ids) - len(self._replay)

    def _beyond_switch(self, length: int) -> bool:
        return self._switch is not None and length > self._switch.length

    def _run(self, new: list[int], keep: int) -> Tensor:
        """Run the tokens to replay and new ones; return the logits [keep, V] of the last `keep` of them."""
        text, start = self._ids + new, self._cached
        logits: list[Tensor] = []
        self._saved: list[tuple[int, dict[int, Any]]] = []
        try:
            for end in self._forward_ends(start, len(text)):
                logits.append(self._forward(text, start, end, keep=max(1, keep - (len(text) - end))))
                start = end
        except BaseException:  # out of memory or Ctrl-C: some layers may hold this call's tokens, others not
            self._restart(self._ids)
            raise
        self._ids, self._replay = text, []
        return torch.cat(logits)[-keep:]

    def _forward_ends(self, cached: int, total: int) -> list[int]:
        """Divide the tokens from number `cached` to `total` into forwards; return the end of each."""
        if self.way == REPLAY:
            return [total]
        ends, position = [], cached
        if cached == 0 and self._prompt:
            position = self._prompt
            ends.append(position)
        while position < total:
            if self.way == SINGLE or (self._switch and self._switch.is_single(position)):
                position += 1
            elif self._switch and position < self._switch.length:
                position = min(total, position + CHUNK, self._switch.length)
            else:
                position = min(total, position + CHUNK)
            ends.append(position)
        return ends

    @torch.inference_mode()
    def _forward(self, text: list[int], start: int, end: int, keep: int) -> Tensor:
        """Append text[start:end] to the cache; return the logits of the last `keep` tokens."""
        keep = min(keep, end - start)
        if self._switch:
            if self._switch.restarts and 0 < start <= self._switch.length < end:
                self._cache, self._saved, start = self._new_cache(), [], 0
            self._switch.set_length(self.model, start)
        options: dict[str, Any] = {"use_cache": False}
        if self.way == REPLAY:
            start = 0
        else:
            copies = {i: copy.deepcopy(layer) for i, layer in enumerate(self._cache.layers) if not _croppable(layer)}
            self._saved.append((start, copies))
            options = {"use_cache": True, self._cache_argument: self._cache}
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        if self._takes_positions:  # as `generate` does: some models count wrongly what is in their cache
            options["position_ids"] = torch.arange(start, end, device=self.device)[None]
        batch = torch.tensor([text[start:end]], device=self.device)
        return self.model(batch, **options).logits[0, -keep:]

    # ---- the cache ----

    def _new_cache(self) -> DynamicCache | None:
        return None if self.way == REPLAY else DynamicCache(config=self.model.config.get_text_config(decoder=True))

    def _rewind_cache(self, length: int) -> None:
        if self.way == REPLAY:
            return
        crossed = self._switch and length <= self._switch.length < self._cached
        if length == 0 or crossed:
            self._restart(self._ids[:length])
        elif all(_croppable(layer) for layer in self._cache.layers):
            self._crop(self._cache.layers, length)
            self._replay = []
        else:
            self._restore(length)

    def _restore(self, length: int) -> None:
        """Go back to the last copy of the cache from before `length`, and replay the tokens after it."""
        while self._saved and self._saved[-1][0] > length:
            self._saved.pop()
        if not self._saved or self._saved[-1][0] == 0:
            self._restart(self._ids[:length])
            return
        position, copies = self._saved.pop()
        self._crop([layer for i, layer in enumerate(self._cache.layers) if i not in copies], position)
        for i, layer in copies.items():
            self._cache.layers[i] = layer
        self._replay = self._ids[position:length]

    def _crop(self, layers: list[Any], length: int) -> None:
        for layer in layers:
            layer.crop(length - self._cached)

    def _restart(self, ids: list[int]) -> None:
        """Empty the cache; the next forward recomputes `ids`."""
        self._ids = ids.copy()
        self._replay = ids.copy()
        self._cache = self._new_cache()
        self._saved = []


def cache_argument(model: Any) -> str | None:
    """Return the name of the argument by which a transformers model takes its cache; None if it takes none."""
    arguments = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in arguments), None)


def _croppable(layer: Any) -> bool:
    return type(layer) is DynamicLayer
