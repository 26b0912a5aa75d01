"""Invented measurements of the speed comparison, in the form of its result files."""

from __future__ import annotations

from dataclasses import asdict

from pdevis.generation import DecodeStats


def stats(accepts: list[int], drafts: list[int], draft: float, verify: float, total: float) -> dict:
    """Return statistics of a generation whose rounds drafted `drafts` tokens and added `accepts`, bonus included."""
    return asdict(
        DecodeStats(
            new_tokens=sum(accepts),
            rounds=len(accepts),
            drafted=sum(drafts),
            draft_steps=sum(drafts),
            accepted=sum(accepts) - len(accepts),
            accept_lengths=accepts,
            draft_lengths=drafts,
            draft_seconds=draft,
            verify_seconds=verify,
            prefill_seconds=0.5,
            total_seconds=total,
        )
    )


def measured(ids: list[int], seconds: float, stats: dict | None = None, kind: str = "peer", **more) -> dict:
    """Return the measurement of one decoder on one prompt; `more` are further fields of `Decoder.describe`."""
    decoder = {"kind": kind, "gamma": None, "compared": True, "note": None}
    return decoder | more | {"seconds": seconds, "ids": ids, "stats": stats}


def entry(**decoders) -> dict:
    """Return the entry of a finished prompt, with what `measured` returns for each decoder."""
    return {"kind": "prompt", "category": None, "left_out": {}, "contestants": decoders}
