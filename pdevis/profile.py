"""Settings that `python -m pdevis.tune` found for a pair of models on a machine, as a JSON file for `--profile`.

    {"format": "pdevis profile", "version": 1, "made": …,
     "settings": {"target_model", "drafter_model", "device", …, "threads", "gamma", "draft": {fields of DraftConfig}},
     "pair": {models, and the devices and formats in use for "auto"}, "machine": {"cpu", "cores", …},
     "costs": {"draft_seconds", "verify_seconds": {"1": …}, "acceptance": […]}, …}

`settings` are the defaults of flags that the user does not give; `costs` are the first estimates of γ = auto. Further
keys are the measurements behind them, which nothing reads back. Importing this module does not import torch.
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
from pdevis.util.files import encode_json, expand_user, parse_json, read_text

FORMAT, VERSION = "pdevis profile", 1
MAX_BYTES = 1 << 24  # a larger file is no profile
DEVICE_FLAGS = ("device", "target_device", "draft_device")
MODEL_FLAGS = ("target_model", "drafter_model", *DEVICE_FLAGS, "target_precision", "draft_precision")
PAIR_LABELS = ("target", "drafter", "target_device", "draft_device", "target_precision", "draft_precision")
MACHINE_FACTS = ("cpu", "cores")  # those that are compared


@dataclass(frozen=True)
class Profile:
    """Settings tuned for a pair and a machine.

    Args:
        name: name of the file.
        models: values of the flags for models, devices and formats (`MODEL_FLAGS`); None: the flag was not given.
        draft: drafting rule, with its mode resolved.
        gamma: draft tokens per round, or "auto".
        threads: of torch on the CPU; None: torch's default.
        costs: of a round with the settings `draft`.
        pair: labels of the tuned pair (`PAIR_LABELS`), with "auto" resolved.
        machine: as `this_machine` returns it.
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
        """Return the values of flags that the user does not give, by their destinations."""
        draft = asdict(self.draft)
        given = {name: value for name, value in self.models.items() if value is not None}
        return given | {"draft_mode": draft.pop("mode")} | draft | {"gamma": self.gamma}

    def differences(self, used: Mapping[str, str | None]) -> list[str]:
        """Compare the tuned pair and machine with those in use. Returns each difference as "name X, here Y".

        Args:
            used: some of `PAIR_LABELS`; None and "auto" are not known yet and not compared.
        """
        differences = []
        for name in PAIR_LABELS:
            value = used.get(name)
            if value not in (None, "auto") and _comparable(name, value) != _comparable(name, self.pair[name]):
                differences.append(f"{name} {self.pair[name]}, here {value}")
        machine = this_machine()
        differences += [
            f"{name} {self.machine[name]}, here {machine[name]}"
            for name in MACHINE_FACTS
            if self.machine[name] != machine[name]
        ]
        return differences

    def costs_for(self, draft: DraftConfig, labels: Mapping[str, str]) -> RoundCosts | None:
        """Return the costs of a round with a drafting rule, its mode resolved; None if they were not measured."""
        return self.costs if draft == self.draft and not self.differences(labels) else None

    def describe(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return the profile's part of `SpeculativePair.describe`, ready for JSON."""
        names = [difference.partition(" ")[0] for difference in self.differences(labels)]
        note = f" (made with another {', '.join(names)})" if names else ""
        return {"profile": self.name + note, "threads": self.usable_threads}

    @property
    def usable_threads(self) -> int | None:
        """The thread count, limited to the cores of this machine."""
        return None if self.threads is None else min(self.threads, this_machine()["cores"])

    def use_threads(self) -> None:
        """Set torch's thread count for this process."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.usable_threads)


def this_machine() -> dict[str, Any]:
    """Return {"cpu": name of the CPU, "cores": number of cores that this process may use}."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": cores}


def encode_profile(profile: Profile, made: str, evidence: Mapping[str, Any]) -> bytes:
    """Return the content of a profile file.

    Args:
        made: time of the measurements.
        evidence: further keys, which are not read back.
    """
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
    return encode_json(content | dict(evidence), indent=1) + b"\n"


def encode_costs(costs: RoundCosts) -> dict[str, Any]:
    """Return costs ready for JSON, whose keys are strings."""
    verify = {str(width): seconds for width, seconds in sorted(costs.verify_seconds.items())}
    return {
        "draft_seconds": costs.draft_seconds,
        "verify_seconds": verify,
        "acceptance": list(costs.acceptance),
    }


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read and check a profile.

    Raises:
        ValueError: the file is missing, no profile, of another version, or broken.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"profile = {path!r}: must be a Profile or the name of a file")
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file}: is not a pdevis profile")
        content = parse_json(read_text(file))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from None
    except json.JSONDecodeError:
        raise ValueError(f"{file}: is not a pdevis profile, or broken: not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file}: is not a pdevis profile; python -m pdevis.tune makes one")
    if content.get("version") != VERSION:
        version = f"has version {content.get('version')!r}, must be {VERSION}"
        raise ValueError(f"{file}: {version}; python -m pdevis.tune makes a new profile")
    try:
        return _decode_profile(file.name, content)
    except KeyError as error:
        raise ValueError(f"{file}: broken profile: {error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: broken profile: {error}") from None


def _decode_profile(name: str, content: dict[str, Any]) -> Profile:
    settings = dict(content["settings"])
    draft = DraftConfig(**settings.pop("draft"))
    if draft.mode == "auto":
        raise ValueError("draft mode = 'auto': must be exact, skip or parallel")
    gamma, threads = settings.pop("gamma"), settings.pop("threads")
    DecodeConfig(gamma=gamma)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads = {threads!r}: must be null or an integer >= 1")
    unknown = sorted(settings.keys() - set(MODEL_FLAGS))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]}")
    models = {flag: settings[flag] for flag in MODEL_FLAGS}
    for flag, value in models.items():
        if not isinstance(value, str) and not (value is None and flag in DEVICE_FLAGS):
            raise ValueError(f"{flag} = {value!r}: must be a string")
    pair = {label: str(content["pair"][label]) for label in PAIR_LABELS}
    machine = {**content["machine"], **{fact: content["machine"][fact] for fact in MACHINE_FACTS}}
    return Profile(
        name=name,
        models=models,
        draft=draft,
        gamma=gamma,
        threads=threads,
        costs=_decode_costs(content["costs"]),
        pair=pair,
        machine=machine,
    )


def _decode_costs(costs: dict[str, Any]) -> RoundCosts:
    verify = {int(width): _positive_number("verify_seconds", value) for width, value in costs["verify_seconds"].items()}
    acceptance = [float(rate) for rate in costs["acceptance"]]
    if not verify or min(verify) < 1:
        raise ValueError("verify_seconds: must map numbers of tokens >= 1 to seconds")
    if not acceptance or not all(0 <= rate <= 1 for rate in acceptance):
        raise ValueError("acceptance: must be a list of one or more numbers from 0 to 1")
    draft_seconds = _positive_number("draft_seconds", costs["draft_seconds"])
    return RoundCosts(draft_seconds, verify_seconds=verify, acceptance=acceptance)


def _positive_number(name: str, value: Any) -> float:
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} = {value!r}: must be a number > 0")
    return float(value)


def _comparable(label: str, text: str) -> str:
    """Return what is compared of a label: the type of a device, the resolved path of a local model."""
    if label.endswith("device"):
        return text.partition(":")[0]
    path = expand_user(text)
    return str(path.resolve()) if label in ("target", "drafter") and path.exists() else text
