"""pdevis: lossless speculative decoding whose drafter runs layers in parallel if a divergence check allows it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdevis.config import DecodeConfig, DraftConfig
    from pdevis.generation import DecodeStats, Generation, TokenEvent
    from pdevis.pair import SpeculativePair, load_pair

__version__ = "0.1.0"
_MODULES = {
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
    "__version__",
    "load_pair",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: torch and transformers take seconds, and --help needs neither."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pdevis' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
