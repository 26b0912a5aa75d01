"""KVCache: the keys and values of one sequence in preallocated storage that grows by doubling and can be rewound.

Positions at `length` and beyond are scratch: a forward writes its entries there, and they count only after `commit`.
So a forward that fails, a rewind, or a draft that is rejected costs no copy.

Storage of consecutive layers is adjacent, so that the attentions of several layers read it as one batch.

Shapes: L = layers on this device, C = capacity, K = key/value heads, D = head size, T = tokens of one write, S = tokens
read, W = layers of one write or read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

INITIAL_CAPACITY = 512  # tokens


class KVCache:
    """Storage of all layers, [L, C, 2K, D] with keys before values, and the number of tokens that it holds.

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
        self.version = 0  # counts the times that the storage has been replaced
        self._row = list(accumulate(layers, initial=0))  # the storage's row of each layer that has one
        self._max_tokens = max_tokens
        self._entry_shape, self._options = (2 * kv_heads, head_dim), {"dtype": dtype, "device": device}
        self.storage = torch.zeros(sum(layers), 0, *self._entry_shape, **self._options)
        self._views: dict[range, tuple[Tensor, Tensor, Tensor]] = {}

    def write(self, layers: range, start: int, end: int, entries: Tensor) -> None:
        """Store keys and values [T, W, 2K, D] of W consecutive layers at positions start to end, which are reserved."""
        self._view(layers)[0][start:end] = entries

    def read(self, layers: range, end: int) -> tuple[Tensor, Tensor]:
        """Return views of the keys and values of W consecutive layers at positions below `end`: [W, K, S, D] each."""
        _, keys, values = self._view(layers)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def _view(self, layers: range) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of some layers' storage: entries [C, W, 2K, D], keys and values [W, K, C, D].

        Creating a view costs as much as a small product, so each one is made once.
        """
        if layers not in self._views:
            row = self._row[layers.start]
            rows = self.storage[row : row + len(layers)]
            self._views[layers] = (rows.transpose(0, 1), *split_keys_values(rows))
        return self._views[layers]

    def commit(self, end: int) -> None:
        """Make the entries below position `end`, which all layers have written, part of the sequence."""
        self.length = end

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens."""
        assert 0 <= length <= self.length, f"rewind to {length} of {self.length} tokens"
        self.length = length

    def clear_scratch(self) -> None:
        """Set the entries beyond the sequence to 0: forwards in static shapes multiply them by 0, which keeps NaN."""
        self.storage[:, self.length :] = 0

    @torch.inference_mode(False)  # so that entries may be written inside and outside inference mode
    def reserve(self, tokens: int) -> None:
        """Provide storage for `tokens` tokens. If memory runs out, the cache stays as it was."""
        if tokens <= self.capacity:
            return
        capacity = max(INITIAL_CAPACITY, tokens, min(2 * self.capacity, self._max_tokens))
        grown = torch.zeros(len(self.storage), capacity, *self._entry_shape, **self._options)
        grown[:, : self.length] = self.storage[:, : self.length]
        self.storage, self._views, self.capacity = grown, {}, capacity
        self.version += 1


def split_keys_values(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of storage [W, C, 2K, D] as keys and values, [W, K, C, D] each."""
    keys, values = rows.chunk(2, dim=2)
    return keys.transpose(1, 2), values.transpose(1, 2)
