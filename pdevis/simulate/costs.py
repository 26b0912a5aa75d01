"""What one drafter forward costs on N devices: the sublayers on its serial path, the head, and what devices exchange.

It mirrors `drafting.lanes`: layer ℓ lives on device ℓ mod N, so that neighbouring lanes meet different devices; the
head is cut by vocabulary; after each sublayer step all devices learn all updates. In the exact pass one device runs a
whole layer, so that only its end is exchanged. Where MLPs are cut by rows, all devices work on each of them, for two
exchanges; what does not read weights (the norm, 8-bit scales, a rotation) each of them does for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdevis.drafting.schedule import Schedule
from pdevis.trace import Sizes
from pdevis.util.validation import check_integer, check_number

AROUND = 2  # exchanges of a forward beside those of its layers: the head's parts, and the token that all embed next


@dataclass(frozen=True)
class Machine:
    """The drafter's devices.

    Args:
        devices: N.
        link_seconds: of one exchange among them.
        contention: what all N at once take for the work of one, over what one alone takes; 1: devices of their own.
        cut: whether the MLPs are cut by rows, as between CPU cores.
    """

    devices: int = 1
    link_seconds: float = 0.0
    contention: float = 1.0
    cut: bool = False

    def __post_init__(self) -> None:
        check_integer("devices", self.devices, minimum=1)
        check_number("link_seconds", self.link_seconds, minimum=0)
        check_number("contention", self.contention, minimum=1)

    def slowdown(self, busy: int) -> float:
        """The factor on what a device takes while `busy` of them work."""
        return 1 + (self.contention - 1) * (busy - 1) / (self.devices - 1) if self.devices > 1 else 1.0

    def lanes(self, count: int) -> float:
        """How many times one lane's time `count` lanes take: N run at once, the rest after them."""
        whole, rest = divmod(count, self.devices)
        return whole * self.slowdown(self.devices) + (self.slowdown(rest) if rest else 0.0)

    @property
    def mlp_exchanges(self) -> int:
        """Of a batch of MLPs."""
        return 2 if self.cut else 1

    def exchanges(self, count: int) -> float:
        """Seconds."""
        return count * self.link_seconds if self.devices > 1 else 0.0


@dataclass(frozen=True)
class StepCosts:
    """Seconds of one layer's attention, of its MLP and of the head, over one token on one device; `token`: what each
    further token of a forward adds to it, on any number of devices; `repeated`: of an MLP's, those that each device
    spends which holds a part of its rows."""

    attention: float
    mlp: float
    head: float
    layers: int
    token: float = 0.0
    repeated: float = 0.0

    @classmethod
    def divide(
        cls,
        seconds: float,
        layers: int,
        sizes: Sizes,
        attention_share: float | None = None,
        head_share: float | None = None,
        token: float = 0.0,
        repeated_share: float = 0.0,
    ) -> StepCosts:
        """Divide an exact step by weights read: decoding reads each of them once, which is what takes its time.

        Args:
            seconds: of an exact step on one device.
            attention_share: the attention's part of a layer, where it has been measured.
            head_share: the head's part of the step, likewise.
            token: seconds that each further token of a forward adds.
            repeated_share: the part of an MLP's time that each device repeats.
        """
        layer = sizes.attention + sizes.mlp
        attention = sizes.attention / layer if attention_share is None else attention_share
        head = sizes.head / (sizes.head + layers * layer) if head_share is None else head_share
        each = seconds * (1 - head) / layers
        mlp = (1 - attention) * each
        return cls(attention * each, mlp, head * seconds, layers, token, repeated_share * mlp)

    def exact(self, machine: Machine, tokens: int = 1) -> float:
        """Seconds of an exact pass over some tokens: layer after layer."""
        layers = self.layers * (self.attention + self._mlps(1, machine))
        exchanges = self.layers * (1 + machine.mlp_exchanges if machine.cut else 1)
        return layers + machine.exchanges(exchanges) + self._end(machine) + (tokens - 1) * self.token

    def planned(self, schedule: Schedule, machine: Machine) -> float:
        """Seconds of a forward under a schedule; what it leaves out costs nothing."""
        seconds = self._end(machine)
        for group in schedule.groups:
            lanes = len(group.layers)
            seconds += self.attention * machine.lanes(lanes)
            for first in range(0, lanes, group.mlp_lanes):
                seconds += self._mlps(min(group.mlp_lanes, lanes - first), machine)
            seconds += machine.exchanges(1 + (group.depth - 1) * machine.mlp_exchanges)
        return seconds

    def _mlps(self, count: int, machine: Machine) -> float:
        """Of one batch."""
        if not machine.cut or machine.devices == 1:
            return self.mlp * machine.lanes(count)
        part = (self.mlp - self.repeated) / machine.devices * machine.slowdown(machine.devices)
        return count * (self.repeated + part)

    def _end(self, machine: Machine) -> float:
        head = self.head / machine.devices * machine.slowdown(machine.devices)
        return head + machine.exchanges(AROUND)
