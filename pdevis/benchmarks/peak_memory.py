"""Measure the peak memory of the speculative decoder alone, in a separate process, and the bytes of its weights.

    python -m pdevis.benchmarks.peak_memory '{"target": "smollm2-135m"}'

The argument is one JSON object: the arguments of `load_pair`, "draft" (fields of `DraftConfig`), "gamma", "length",
"prompt" (ids or text; default: a short text). It prints one JSON object:

    before_bytes    resident before the models are loaded: Python, torch, transformers
    loaded_bytes    resident after they are loaded
    peak_bytes      the highest resident size so far, loading included
    weight_bytes    {"target", "drafter", "both"}: weights as stored; "both" counts shared ones once
    cuda            {device: the most bytes that torch has allocated there}
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.util.argtypes import one_line

if TYPE_CHECKING:
    from pdevis.config import DraftConfig
    from pdevis.models.causal_lm import CausalLM

STATUS = Path("/proc/self/status")
WEIGHT_PACKAGES = ("pdevis", "bitsandbytes")  # packages whose objects may hold weights


def measure_memory(
    pair_arguments: dict[str, Any], *, draft: DraftConfig, gamma: int | str, length: int
) -> dict[str, Any]:
    """Run the decoder in a child process; return its result, or {"left_out": reason} if it fails.

    Args:
        pair_arguments: the arguments of `load_pair`, without `draft`.
        draft: how the drafter's layers run.
        gamma: draft tokens per round, or "auto".
        length: new tokens.
    """
    request = json.dumps(pair_arguments | {"draft": asdict(draft), "gamma": gamma, "length": length})
    command = [sys.executable, "-m", "pdevis.benchmarks.peak_memory", request]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        reason = f"the process ended with code {process.returncode}" + (f": {lines[-1]}" if lines else "")
        return {"left_out": reason}
    return json.loads(process.stdout.splitlines()[-1])


def summarize_memory(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the result of `measure_memory` with the ratios of the peak to the bytes of the weights.

    `models_over_weights` is the ratio without the bytes that were resident before the models were loaded. None if
    memory was not measured.
    """
    if entry is None:
        return None
    if "left_out" in entry:
        return {"left_out": entry["left_out"]}
    measured = {name: value for name, value in entry.items() if name != "kind"}
    weights, peak = entry["weight_bytes"]["both"], entry["peak_bytes"]
    ratios = {"peak_over_weights": peak / weights, "models_over_weights": (peak - entry["before_bytes"]) / weights}
    return measured | ratios


def weight_bytes(models: Iterable[CausalLM]) -> int:
    """Return the bytes of the models' weights in the formats in which they are stored; shared ones count once.

    Tensors count with their own element size, packed ones too (without their padding); fbgemm's 8-bit weights count
    one byte each and 4 bytes for the scale of each row. KV caches and rotary factors are not weights.
    """
    storages: dict[int, int] = {}
    for model in models:
        weights = getattr(model, "weights", None)
        if weights is None:  # a transformers model
            module = getattr(model, "model", None)
            _collect_storages([*module.parameters(), *module.buffers()], storages)
        else:
            _collect_storages(weights, storages)
    return sum(storages.values())


def _collect_storages(root: Any, storages: dict[int, int]) -> None:
    """Add the bytes of every tensor that can be reached from `root`, through closures too, by identity of storage."""
    import torch

    queue: list[Any] = [root]
    seen: dict[int, Any] = {}  # keeps its values alive, so that no id is used twice
    while queue:
        value = queue.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            if value.device.type != "meta":
                dense = value.layout == torch.strided and not value.is_mkldnn
                key = value.untyped_storage().data_ptr() if dense else id(value)
                storages[key] = max(value.numel() * value.element_size(), storages.get(key, 0))
        elif isinstance(value, torch.ScriptObject):
            weight, _ = torch.ops.quantized.linear_unpack(value)
            storages[id(value)] = weight.numel() + 4 * len(weight)
        else:
            queue += _members(value)


def _members(value: Any) -> list[Any]:
    """Return the objects that a container, function or object refers to and that may hold weights."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if _package(type(value)) in WEIGHT_PACKAGES:
        return list(getattr(value, "__dict__", {}).values())
    if _package(value) in WEIGHT_PACKAGES:  # a function or a method
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return cells + ([value.__self__] if hasattr(value, "__self__") else [])
    return []


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", "")).split(".")[0]


def resident_bytes() -> tuple[int, int]:
    """Return the resident bytes of this process, now and at their highest.

    They come from /proc, since `ru_maxrss` of a child starts with its parent's. On systems without /proc there is
    only `ru_maxrss`: both numbers are the highest.
    """
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        now, peak = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        now = peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return now, peak


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the pair, decode one prompt and report. Argument and result are those of the command line."""
    import torch

    from pdevis.config import DecodeConfig, DraftConfig
    from pdevis.pair import load_pair

    before, _ = resident_bytes()
    arguments = dict(request)
    config = DecodeConfig(gamma=arguments.pop("gamma", 4), max_new_tokens=arguments.pop("length", 32), eos_ids=())
    prompt = arguments.pop("prompt", "Why is the sky blue?")
    draft = DraftConfig(**arguments.pop("draft", {}))
    pair = load_pair(**arguments, draft=draft)
    loaded, _ = resident_bytes()
    pair.generate(prompt, config)
    _, peak = resident_bytes()
    models = {"target": [pair.target], "drafter": [pair.drafter], "both": [pair.target, pair.drafter]}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "before_bytes": before,
        "loaded_bytes": loaded,
        "peak_bytes": peak,
        "weight_bytes": {name: weight_bytes(group) for name, group in models.items()},
        "cuda": {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in range(count)},
    }


def main(argv: list[str] | None = None) -> int:
    """Read one JSON object from the command line and print another."""
    words = sys.argv[1:] if argv is None else argv
    try:
        request = json.loads(words[0]) if words else {}
        print(json.dumps(run(request)))
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
