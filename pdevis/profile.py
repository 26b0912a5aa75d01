"""What `python -m pdevis.tune` has found out about a pair of models on a machine, as a JSON file for `--profile`.

    {"format": "pdevis profile", "version": 1, "made": …,
     "settings": {"target_model", "drafter_model", "device", …, "threads", "gamma", "draft": {fields of DraftConfig}},
     "pair": {what "auto" became: devices and weight formats}, "machine": {"cpu", "cores", …},
     "costs": {"draft_seconds", "verify_seconds": {"1": …}, "acceptance": […]}, …}

`settings` are what the flags become that the user does not give; `costs` are what γ = auto begins with. Further keys
are the evidence, which nothing reads back. Importing this needs no torch.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.gamma import RoundCosts

FORMAT, VERSION = "pdevis profile", 1
LARGEST = 1 << 24  # bytes: anything larger is another kind of file
DEVICES = ("device", "target_device", "draft_device")
MODELS = ("target_model", "drafter_model", *DEVICES, "target_precision", "draft_precision")  # flags
LABELS = ("target", "drafter", "target_device", "draft_device", "target_precision", "draft_precision")
COMPARED = ("cpu", "cores")  # of the machine


@dataclass(frozen=True)
class Profile:
    """Settings tuned for a pair and a machine.

    Args:
        name: of the file, as it is shown.
        models: the flags that named models, devices and formats (`MODELS`), as they were given; None: not given.
        draft: the drafting rule, its mode resolved.
        gamma: draft tokens per round, or "auto".
        threads: of torch on the CPU; None: its own choice.
        costs: of a round under `draft`.
        pair: labels of the tuned pair (`LABELS`): what "auto" became.
        machine: as `this_machine` says.
    """

    name: str
    models: Mapping[str, str | None]
    draft: DraftConfig
    gamma: int | str
    threads: int | None
    costs: RoundCosts
    pair: Mapping[str, str]
    machine: Mapping[str, Any]

    def flags(self) -> dict[str, Any]:
        """What flags become that the user does not give, by their destinations."""
        draft = asdict(self.draft)
        given = {name: value for name, value in self.models.items() if value is not None}
        return given | {"draft_mode": draft.pop("mode")} | draft | {"gamma": self.gamma}

    def differences(self, used: Mapping[str, str | None]) -> list[str]:
        """Where the pair in use and this machine are not those that were tuned, each as "name X, here Y".

        Args:
            used: some of `LABELS`; what is None or "auto" is not known yet and not compared.
        """
        found = []
        for name in LABELS:
            here = used.get(name)
            if here not in (None, "auto") and _comparable(name, here) != _comparable(name, self.pair[name]):
                found.append(f"{name} {self.pair[name]}, here {here}")
        machine = this_machine()
        found += [f"{name} {self.machine[name]}, here {machine[name]}" for name in COMPARED if self._moved(name)]
        return found

    def costs_for(self, draft: DraftConfig, labels: Mapping[str, str]) -> RoundCosts | None:
        """What a round costs under a drafting rule, its mode resolved; None where that has not been measured."""
        return self.costs if draft == self.draft and not self.differences(labels) else None

    def describe(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """What `SpeculativePair.describe` says of a profile, ready for JSON."""
        differing = [each.partition(" ")[0] for each in self.differences(labels)]
        note = f" (made with another {', '.join(differing)})" if differing else ""
        return {"profile": self.name + note, "threads": self.usable_threads}

    @property
    def usable_threads(self) -> int | None:
        """The thread count, within what this machine has."""
        return None if self.threads is None else min(self.threads, this_machine()["cores"])

    def use_threads(self) -> None:
        """Set torch's thread count for this process."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.usable_threads)

    def _moved(self, name: str) -> bool:
        return self.machine[name] != this_machine()[name]


def this_machine() -> dict[str, Any]:
    """{"cpu": its name, "cores": those that this process may use}."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": cores}


def encode_profile(profile: Profile, made: str, evidence: Mapping[str, Any]) -> bytes:
    """The file's text. `made` is the time; `evidence` is added behind what is read back."""
    settings = {**profile.models, "threads": profile.threads, "gamma": profile.gamma, "draft": asdict(profile.draft)}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made": made,
        "settings": settings,
        "pair": dict(profile.pair),
        "machine": dict(profile.machine),
        "costs": encode_costs(profile.costs),
    }
    return (json.dumps(content | dict(evidence), indent=1, ensure_ascii=False) + "\n").encode()


def encode_costs(costs: RoundCosts) -> dict[str, Any]:
    verify = {str(width): seconds for width, seconds in sorted(costs.verify_seconds.items())}
    return {
        "draft_seconds": costs.draft_seconds,
        "verify_seconds": verify,
        "acceptance": list(costs.acceptance),
    }


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read and check a profile.

    Raises:
        ValueError: for a file that is missing, no profile, made by another version, or broken; in one line.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"{file}: is no profile of pdevis")
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{file}: is no profile of pdevis, or broken: not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file}: is no profile of pdevis; python -m pdevis.tune makes one")
    if content.get("version") != VERSION:
        found = f"{file}: has version {content.get('version')!r}, must be {VERSION}"
        raise ValueError(f"{found}; python -m pdevis.tune makes a new one")
    try:
        return _decode(file.name, content)
    except KeyError as error:
        raise ValueError(f"{file}: broken profile: {error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: broken profile: {error}") from None


def _decode(name: str, content: dict[str, Any]) -> Profile:
    settings = dict(content["settings"])
    draft = DraftConfig(**settings.pop("draft"))
    if draft.mode == "auto":
        raise ValueError("draft mode = 'auto': must be exact, skip or parallel")
    gamma, threads = settings.pop("gamma"), settings.pop("threads")
    DecodeConfig(gamma=gamma)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads = {threads!r}: must be null or an integer >= 1")
    unknown = sorted(settings.keys() - set(MODELS))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]}")
    models = {flag: settings[flag] for flag in MODELS}
    for flag, value in models.items():
        if not isinstance(value, str) and not (value is None and flag in DEVICES):
            raise ValueError(f"{flag} = {value!r}: must be a string")
    pair = {label: str(content["pair"][label]) for label in LABELS}
    machine = {**content["machine"], **{fact: content["machine"][fact] for fact in COMPARED}}
    return Profile(name, models, draft, gamma, threads, _decode_costs(content["costs"]), pair, machine)


def _decode_costs(costs: dict[str, Any]) -> RoundCosts:
    verify = {int(width): _above_zero("verify_seconds", value) for width, value in costs["verify_seconds"].items()}
    acceptance = [float(share) for share in costs["acceptance"]]
    if not verify or min(verify) < 1:
        raise ValueError("verify_seconds: must hold seconds by tokens, 1 or more")
    if not acceptance or not all(0 <= share <= 1 for share in acceptance):
        raise ValueError("acceptance: must be numbers from 0 to 1, at least one")
    return RoundCosts(_above_zero("draft_seconds", costs["draft_seconds"]), verify, acceptance)


def _above_zero(name: str, value: Any) -> float:
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} = {value!r}: must be above 0")
    return float(value)


def _comparable(label: str, text: str) -> str:
    """Any device of a kind will do; a local model may be named by several paths."""
    if label.endswith("device"):
        return text.partition(":")[0]
    path = Path(text).expanduser()
    return str(path.resolve()) if label in ("target", "drafter") and path.exists() else text
