"""An adapter on a tiny model, and the log-likelihoods of transformers to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pdevis.lm_eval.adapter import model_class

TOLERANCE = 1e-6  # transformers applies the rotary embedding in float32, whatever the weight format


def make_adapter(folder: Path) -> Any:
    """Return an adapter in float64, so that comparisons need no tolerance for rounding."""
    return model_class()(target=str(folder), target_precision="float64", draft_precision="float64", gamma=3, window=2)


def make_reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def log_likelihood(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return (Σ log p, is greedy) from one whole forward of the transformers model."""
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    scored = torch.tensor(continuation)
    total = torch.log_softmax(logits, -1).gather(-1, scored[:, None]).sum().item()
    return total, bool((logits.argmax(-1) == scored).all())
