"""Peak memory of the speculative decoder alone, in a process of its own, against the bytes of the models' weights.

    python -m pdevis.benchmarks.speed.memory '{"target": "smollm2-135m"}'

The argument is one JSON object: the arguments of `load_pair`, "draft" (fields of `DraftConfig`), "gamma", "length",
"prompt" (ids; none: a short text). It prints one JSON object:

    before_bytes    resident before the models are loaded: Python, torch, transformers
    loaded_bytes    resident once they are
    peak_bytes      the most that was ever resident, loading included
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

if TYPE_CHECKING:
    from pdevis.config import DraftConfig
    from pdevis.models.causal_lm import CausalLM

STATUS = Path("/proc/self/status")
WALKED = ("pdevis", "bitsandbytes")  # packages whose objects may hold weights
Found = dict[int, int]  # identity of a piece of storage -> its bytes


def measure_memory(pair: dict[str, Any], draft: DraftConfig, gamma: int | str, length: int) -> dict[str, Any]:
    """Run the decoder in a child process; returns what it prints, or {"left_out": reason} where it fails.

    Args:
        pair: the arguments of `load_pair`, but for `draft`.
        draft, gamma, length: what is decoded, and how.
    """
    asked = json.dumps(pair | {"draft": asdict(draft), "gamma": gamma, "length": length})
    command = [sys.executable, "-m", "pdevis.benchmarks.speed.memory", asked]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        return {"left_out": f"the process ended with code {run.returncode}" + (f": {lines[-1]}" if lines else "")}
    return json.loads(run.stdout.splitlines()[-1])


def weight_bytes(models: Iterable[CausalLM]) -> int:
    """Bytes of the models' weights in the formats in which they are stored; what is shared counts once.

    Tensors count with their own element size, packed ones too (their padding apart); fbgemm's 8-bit weights count a
    byte each and 4 bytes for the scale of each row. KV caches and rotary factors are no weights.
    """
    found: Found = {}
    for model in models:
        weights = getattr(model, "weights", None)
        if weights is None:  # a transformers model
            module = getattr(model, "model", None)
            _walk([*module.parameters(), *module.buffers()], found)
        else:
            _walk(weights, found)
    return sum(found.values())


def summarize_memory(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """What was measured, and the peak over the bytes of the weights, with all and without what was resident before
    the models; None where it was not asked for."""
    if entry is None or "left_out" in entry:
        return entry and {"left_out": entry["left_out"]}
    found = {name: value for name, value in entry.items() if name != "kind"}
    weights, peak = entry["weight_bytes"]["both"], entry["peak_bytes"]
    ratios = {"peak_over_weights": peak / weights, "models_over_weights": (peak - entry["before_bytes"]) / weights}
    return found | ratios


def _walk(root: Any, found: Found) -> None:
    """Collect the storage of every tensor that can be reached from `root`, through closures too."""
    import torch

    queue, seen = [root], {}  # seen keeps what it names alive, so that no identity is given away twice
    while queue:
        value = queue.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            if value.device.type != "meta":
                dense = value.layout == torch.strided and not value.is_mkldnn
                key = value.untyped_storage().data_ptr() if dense else id(value)
                found[key] = max(value.numel() * value.element_size(), found.get(key, 0))
        elif isinstance(value, torch.ScriptObject):
            weight, _ = torch.ops.quantized.linear_unpack(value)
            found[id(value)] = weight.numel() + 4 * len(weight)
        elif isinstance(value, Mapping):
            queue += value.values()
        elif isinstance(value, (list, tuple)):
            queue += value
        elif isinstance(value, partial):
            queue += [value.func, *value.args, *value.keywords.values()]
        elif str(getattr(type(value), "__module__", "")).split(".")[0] in WALKED:
            queue += getattr(value, "__dict__", {}).values()
        elif str(getattr(value, "__module__", "")).split(".")[0] in WALKED:  # a function or a method
            queue += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            queue += [value.__self__] if hasattr(value, "__self__") else []


def resident_bytes() -> tuple[int, int]:
    """(now, at most so far) of this process.

    From /proc: `ru_maxrss` of a child begins with what its parent had. Elsewhere there is only that: both are the peak.
    """
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return tuple(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, KeyError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Load the pair, decode one prompt, report. Arguments and result as in the module's docstring."""
    import torch

    from pdevis.config import DecodeConfig, DraftConfig
    from pdevis.pair import load_pair

    before, _ = resident_bytes()
    options = {"gamma": asked.pop("gamma", 4), "max_new_tokens": asked.pop("length", 32), "eos_ids": ()}
    prompt = asked.pop("prompt", "Why is the sky blue?")
    pair = load_pair(**asked | {"draft": DraftConfig(**asked.pop("draft", {}))})
    loaded, _ = resident_bytes()
    pair.generate(prompt, DecodeConfig(**options))
    _, peak = resident_bytes()
    weights = {"target": [pair.target], "drafter": [pair.drafter], "both": [pair.target, pair.drafter]}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "before_bytes": before,
        "loaded_bytes": loaded,
        "peak_bytes": peak,
        "weight_bytes": {name: weight_bytes(models) for name, models in weights.items()},
        "cuda": {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in range(count)},
    }


def main(argv: list[str] | None = None) -> int:
    """One JSON object in, one out."""
    words = sys.argv[1:] if argv is None else argv
    try:
        asked = json.loads(words[0]) if words else {}
        print(json.dumps(run(asked)))
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
