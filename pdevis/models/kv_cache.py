"""KVCache: the keys and values of one sequence in preallocated storage that grows by doubling and can be rewound.

Positions at `length` and beyond are scratch: a forward writes its entries there, and they count only after `commit`.
So a forward that fails, a rewind, or a draft that is rejected costs no copy.

Shapes: C = capacity, K = key/value heads, D = head size, T = tokens of one write, S = tokens read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL_CAPACITY = 512  # tokens


class KVCache:
    """Per-layer storage [C, 2K, D], keys before values, and the number of tokens that it holds.

    Args:
        layers: True for each layer whose attention runs on this device; the others get no storage.
        kv_heads: K.
        head_dim: D.
        dtype: of the entries.
        device: of the storage.
        max_tokens: doubling stops here (the context length); a larger request is still granted.
    """

    def __init__(
        self,
        layers: Sequence[bool],
        *,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        max_tokens: int,
    ) -> None:
        self.length = 0
        self.capacity = 0
        self.storage: list[Tensor] = []  # per layer [C, 2K, D]
        self._layers = list(layers)
        self._entry_shape = (2 * kv_heads, head_dim)
        self._options = {"dtype": dtype, "device": device}
        self._max_tokens = max_tokens
        self._kv_views: list[tuple[Tensor, Tensor]] = []

    def write(self, layer: int, start: int, end: int, entries: Tensor) -> None:
        """Store a layer's keys and values [T, 2K, D] at positions start to end, which must be reserved."""
        self.storage[layer][start:end] = entries

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Return views of a layer's keys and values at positions below `end`: [1, K, S, D] each."""
        keys, values = self._kv_views[layer]
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def commit(self, end: int) -> None:
        """Make the entries below position `end`, which all layers have written, part of the sequence."""
        self.length = end

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens."""
        assert 0 <= length <= self.length, f"rewind to {length} of {self.length} tokens"
        self.length = length

    @torch.inference_mode(False)  # so that entries may be written inside and outside inference mode
    def reserve(self, tokens: int) -> None:
        """Provide storage for `tokens` tokens. If memory runs out, the cache stays as it was."""
        if tokens <= self.capacity:
            return
        capacity = max(INITIAL_CAPACITY, tokens, min(2 * self.capacity, self._max_tokens))
        grown = []
        for layer, is_local in enumerate(self._layers):
            rows = torch.zeros(capacity if is_local else 0, *self._entry_shape, **self._options)
            if is_local and self.storage:
                rows[: self.length] = self.storage[layer][: self.length]
            grown.append(rows)
        # Creating a view costs as much as a small product, so the views of whole keys and values are made once.
        views = [split_keys_values(rows) for rows in grown]
        self.storage, self._kv_views, self.capacity = grown, views, capacity


def split_keys_values(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of a layer's storage [C, 2K, D] as keys and values, [1, K, C, D] each."""
    keys, values = rows.chunk(2, dim=1)
    return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
