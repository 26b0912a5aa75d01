"""Cost model of one drafter forward on N devices: sublayers on the serial path, the output head, and exchanges.

It mirrors `pdevis.parallel.lanes`: layer ℓ lives on device ℓ mod N, so neighbouring lanes run on different devices; the
head is split by vocabulary; after each sublayer step every device receives all updates. In an exact pass one device
runs a whole layer, so only the end of the layer is exchanged. If the MLPs are split by rows, all devices work on each
of them, which takes two exchanges; the parts that read no weights (norm, 8-bit scales, rotation) run on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdevis.drafting.schedule import Schedule
from pdevis.trace import Sizes
from pdevis.util.validation import check_integer, check_number

EXCHANGES_PER_FORWARD = 2  # apart from those of the layers: the parts of the head, and the next token


@dataclass(frozen=True)
class DeviceSet:
    """The drafter's devices.

    Args:
        count: N.
        link_seconds: time of one exchange among them.
        contention: time of one device's work while all N are busy, divided by its time while the others are idle; 1
            for devices that share nothing.
        split_mlps: True if each MLP is split by rows over all devices, as between CPU cores.
    """

    count: int = 1
    link_seconds: float = 0.0
    contention: float = 1.0
    split_mlps: bool = False

    def __post_init__(self) -> None:
        check_integer("devices", self.count, minimum=1)
        check_number("link_seconds", self.link_seconds, minimum=0)
        check_number("contention", self.contention, minimum=1)

    def slowdown(self, busy: int) -> float:
        """Return the factor on the time of a device's work while `busy` devices work."""
        return 1 + (self.contention - 1) * (busy - 1) / (self.count - 1) if self.count > 1 else 1.0

    def lane_factor(self, lanes: int) -> float:
        """Return the time of `lanes` lanes divided by the time of one: N run at once, the rest after them."""
        full_batches, rest = divmod(lanes, self.count)
        return full_batches * self.slowdown(self.count) + (self.slowdown(rest) if rest else 0.0)

    @property
    def exchanges_per_mlp_batch(self) -> int:
        """Number of exchanges after one batch of MLPs."""
        return 2 if self.split_mlps else 1

    def exchange_seconds(self, count: int) -> float:
        """Return the time of `count` exchanges; 0 on one device."""
        return count * self.link_seconds if self.count > 1 else 0.0


@dataclass(frozen=True)
class StepCosts:
    """Times of the parts of an exact draft step over one token on one device.

    Args:
        attention_seconds: one layer's attention.
        mlp_seconds: one layer's MLP.
        head_seconds: the output head.
        layers: number of layers.
        token_seconds: added by each further token of a forward, on any number of devices.
        repeated_seconds: the part of an MLP's time that every device spends if the MLP is split by rows.
        kernel_share: the part of a sublayer's time that does not depend on the bytes of its weights: launching kernels,
            and operations on small tensors. A wide layer spends it once for all lanes.
    """

    attention_seconds: float
    mlp_seconds: float
    head_seconds: float
    layers: int
    token_seconds: float = 0.0
    repeated_seconds: float = 0.0
    kernel_share: float = 0.0

    @classmethod
    def divide(
        cls,
        step_seconds: float,
        layers: int,
        sizes: Sizes,
        *,
        attention_share: float | None = None,
        head_share: float | None = None,
        token_seconds: float = 0.0,
        repeated_share: float = 0.0,
        kernel_share: float = 0.0,
    ) -> StepCosts:
        """Divide the time of an exact step in proportion to the weights read.

        Decoding reads every weight once, and its time is dominated by that.

        Args:
            step_seconds: an exact step on one device.
            layers: number of layers.
            sizes: weights read by each part.
            attention_share: measured fraction of a layer's time spent in its attention; None: by weights.
            head_share: measured fraction of the step's time spent in the head; None: by weights.
            token_seconds: added by each further token of a forward.
            repeated_share: fraction of an MLP's time that each device repeats.
            kernel_share: fraction of a sublayer's time that does not depend on its weights.
        """
        layer = sizes.attention + sizes.mlp
        attention = sizes.attention / layer if attention_share is None else attention_share
        head = sizes.head / (sizes.head + layers * layer) if head_share is None else head_share
        layer_seconds = step_seconds * (1 - head) / layers
        mlp_seconds = (1 - attention) * layer_seconds
        return cls(
            attention_seconds=attention * layer_seconds,
            mlp_seconds=mlp_seconds,
            head_seconds=head * step_seconds,
            layers=layers,
            token_seconds=token_seconds,
            repeated_seconds=repeated_share * mlp_seconds,
            kernel_share=kernel_share,
        )

    def exact_seconds(self, devices: DeviceSet, tokens: int = 1) -> float:
        """Return the time of an exact pass over `tokens` tokens: layer after layer."""
        layers = self.layers * (self.attention_seconds + self._mlp_batch_seconds(1, devices))
        exchanges = self.layers * (1 + devices.exchanges_per_mlp_batch if devices.split_mlps else 1)
        further_tokens = (tokens - 1) * self.token_seconds
        return layers + devices.exchange_seconds(exchanges) + self._end_seconds(devices) + further_tokens

    def scheduled_seconds(self, schedule: Schedule, devices: DeviceSet) -> float:
        """Return the time of a forward over one token under a schedule; dropped layers take none."""
        seconds = self._end_seconds(devices)
        for group in schedule.groups:
            lanes = len(group.layers)
            seconds += self.attention_seconds * devices.lane_factor(lanes)
            for first in range(0, lanes, group.mlp_lanes):
                seconds += self._mlp_batch_seconds(min(group.mlp_lanes, lanes - first), devices)
            seconds += devices.exchange_seconds(1 + (group.depth - 1) * devices.exchanges_per_mlp_batch)
        return seconds

    def static_seconds(self, schedule: Schedule, devices: DeviceSet) -> float:
        """Return the time of a forward over one token under a static schedule, whose groups run as wide layers."""
        seconds = self._end_seconds(devices)
        for group in schedule.groups:
            if group.sublayers != "mlp":
                seconds += self.attention_seconds * self._wide_factor(len(group.layers), devices, by_rows=False)
                seconds += devices.exchange_seconds(1)
            for batch in group.mlp_batches:
                seconds += self.mlp_seconds * self._wide_factor(len(batch), devices, by_rows=devices.split_mlps)
                seconds += devices.exchange_seconds(devices.exchanges_per_mlp_batch)
        return seconds

    def _wide_factor(self, lanes: int, devices: DeviceSet, *, by_rows: bool) -> float:
        """Return the time of the wide sublayer of some lanes divided by the time of one sublayer on one device."""
        busy = devices.count if by_rows else min(lanes, devices.count)
        largest = lanes / busy if by_rows else -(-lanes // busy)  # lanes' weights on the device that has most of them
        return (self.kernel_share + (1 - self.kernel_share) * largest) * devices.slowdown(busy)

    def _mlp_batch_seconds(self, count: int, devices: DeviceSet) -> float:
        """Return the time of `count` MLPs that start from the same hidden state."""
        if not devices.split_mlps or devices.count == 1:
            return self.mlp_seconds * devices.lane_factor(count)
        split = (self.mlp_seconds - self.repeated_seconds) / devices.count * devices.slowdown(devices.count)
        return count * (self.repeated_seconds + split)

    def _end_seconds(self, devices: DeviceSet) -> float:
        """Return the time of the head and of the exchanges that belong to no layer."""
        head = self.head_seconds / devices.count * devices.slowdown(devices.count)
        return head + devices.exchange_seconds(EXCHANGES_PER_FORWARD)
