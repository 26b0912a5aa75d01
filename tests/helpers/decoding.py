"""Helpers for tests of the decode loop: a prompt, settings, drafting rules, and plain decoding to compare with."""

from __future__ import annotations

from typing import Any

import torch

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.stack import DecoderStack

PROMPT = [3, 14, 15, 92, 65]
NEW = 24
GREEDY = DecodeConfig(max_new_tokens=NEW, gamma=4, eos_ids=())
RULES = [
    DraftConfig(mode="exact"),
    DraftConfig(mode="skip", check="inline", threshold=0.5),
    DraftConfig(mode="skip", check="inline", threshold=0.5, calibrate=False),
    DraftConfig(mode="parallel", threshold=0.0),
]


def rule_name(rule: DraftConfig) -> str:
    return f"{rule.mode}-{rule.check}" + ("" if rule.calibrate else "-uncalibrated")


def stack_of(model: Any) -> DecoderStack:
    return DecoderStack(read_weights(model, "float64", torch.device("cpu")))


def plain(target: Any, prompt: list[int] = PROMPT, config: DecodeConfig = GREEDY) -> list[int]:
    return [event.id for event in autoregressive(Verifier(target), prompt, config=config, stats=DecodeStats())]
