"""pdevis: lossless speculative decoding whose drafter runs layers in parallel where a divergence check allows it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdevis.config import DecodeConfig, DraftConfig
    from pdevis.generation import DecodeStats, Generation, TokenEvent
    from pdevis.pair import SpeculativePair, load_pair

_HOME = {
    "SpeculativePair": "pdevis.pair",
    "load_pair": "pdevis.pair",
    "DecodeConfig": "pdevis.config",
    "DecodeStats": "pdevis.generation",
    "DraftConfig": "pdevis.config",
    "Generation": "pdevis.generation",
    "TokenEvent": "pdevis.generation",
}
__all__ = [
    "DecodeConfig",
    "DecodeStats",
    "DraftConfig",
    "Generation",
    "SpeculativePair",
    "TokenEvent",
    "load_pair",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, and a script's --help needs neither."""
    if name not in _HOME:
        raise AttributeError(f"module 'pdevis' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
