"""From what was measured, prompt by prompt, to the rows of the speed comparison. Loads no model.

Everything is a ratio of sums over prompts with a 95 % bootstrap interval over them, and the prompts are resampled
together for all contestants. What was not measured is None, never 0.

Symbols: α = accepted / drafted; β = accepted / (accepted + rounds with a rejection), the acceptance of a position
given that it is tested; γ̄ = drafted / rounds; c = a draft step's time / a plain decoding step's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from pdevis.benchmarks.bootstrap import Interval, interval, ratio, ratio_of_ratios
from pdevis.benchmarks.speed.baselines import GENERATE
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.benchmarks.speed.speed_devices import add_devices

Measured = dict[str, Any]  # one contestant on one prompt
REFERENCES = (PLAIN, GENERATE)
SUMS = ("drafted", "draft_steps", "accepted", "new_tokens", "rounds", "fallback_rounds", "skipped", "depth")


def make_rows(prompts: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One row a contestant, and why some have none.

    Args:
        prompts: the entries of finished prompts, each with its "contestants" and "left_out".
    """
    left_out = {name: reason for entry in prompts for name, reason in entry["left_out"].items()}
    names = list(dict.fromkeys(name for entry in prompts for name in entry["contestants"]))
    found = {name: [entry["contestants"].get(name) for entry in prompts] for name in names}
    for name, column in list(found.items()):
        if None in column:
            left_out[name] = f"measured on {len(column) - column.count(None)} of {len(prompts)} prompts only"
            del found[name]
    rows = [make_row(name, found) for name in found]
    add_devices(rows, found)
    return rows, left_out


def make_row(name: str, found: dict[str, list[Measured]]) -> dict[str, Any]:
    """The figures of one contestant; `found` has the measurements of all, prompts in the same order."""
    column = found[name]
    first = column[0]
    row: dict[str, Any] = {"name": name, **{key: first[key] for key in ("kind", "gamma", "compared", "note")}}
    row |= {key: first.get(key) for key in ("draft_device", "overlap")}
    row |= {"prompts": len(column), "tokens": sum(map(_tokens, column)), "seconds": sum(map(_seconds, column))}
    row["tokens_per_second"] = _plain(interval([[*map(_tokens, column)], [*map(_seconds, column)]], ratio))
    row["over"] = {other: _over(column, found[other]) for other in REFERENCES if other in found and other != name}
    plain = found.get(PLAIN)
    if plain:
        row["same_ids"] = sum(one["ids"] == other["ids"] for one, other in zip(column, plain, strict=True))
    if first["stats"]:
        row |= _decoding(column, plain)
    if row["kind"] == "speculative":
        row |= _speculation(column, plain)
        row |= _analysis(row)
    return row


def expected_length(beta: float, gamma: float) -> float:
    """E = (1 − β^(γ+1)) / (1 − β), the tokens of a round whose positions are accepted with probability β each."""
    return gamma + 1 if beta >= 1 else (1 - beta ** (gamma + 1)) / (1 - beta)


def rejections(stats: dict[str, Any]) -> int:
    """Rounds in which a draft token was rejected. The target's own token is the last of each accepted length."""
    lengths = zip(stats["accept_lengths"], stats["draft_lengths"], strict=True)
    return sum(added - 1 < drafted for added, drafted in lengths)


def equality(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether all greedy ids that must be those of plain decoding are, and which are not comparable."""
    compared = [row for row in rows if row["compared"] and row.get("same_ids") is not None]
    different = {row["name"]: row["prompts"] - row["same_ids"] for row in compared if row["same_ids"] < row["prompts"]}
    return {
        "reference": PLAIN,
        "compared": [row["name"] for row in compared if row["name"] != PLAIN],
        "all_equal": not different,
        "different": different,
        "not_compared": {row["name"]: row["note"] for row in rows if not row["compared"]},
    }


def by_category(prompts: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per category of the prompts, each contestant's speed over plain decoding; nothing where there are none."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in prompts:
        if entry["category"] is not None:
            groups.setdefault(entry["category"], []).append(entry["contestants"])
    names = [row["name"] for row in rows if row["name"] != PLAIN]
    return {
        category: {
            "prompts": len(group),
            "over_plain": {
                name: _over([each[name] for each in group], [each[PLAIN] for each in group])["ratio"] for name in names
            },
        }
        for category, group in sorted(groups.items())
    }


def _decoding(column: list[Measured], plain: list[Measured] | None) -> dict[str, Any]:
    """Decode time without the prompt, and where a round's time goes."""
    total = {name: _sum(column, name) for name in ("rounds", "draft_seconds", "verify_seconds", "prefill_seconds")}
    decode = sum(map(_decode_seconds, column))
    rounds = total["rounds"]
    rest = decode - total["draft_seconds"] - total["verify_seconds"]
    times = {"draft": total["draft_seconds"], "verify": total["verify_seconds"], "rest": rest}
    return {
        "decode_seconds": decode,
        "prefill_seconds": total["prefill_seconds"],
        "decode_tokens_per_second": _plain(interval(_decode_columns(column), ratio)),
        "decode_over_plain": plain and _plain(interval(_decode_columns(column, plain), ratio_of_ratios)),
        "round_ms": {name: 1000 * seconds / rounds for name, seconds in times.items()},
        "round_share": {name: seconds / decode for name, seconds in times.items()},
    }


def _speculation(column: list[Measured], plain: list[Measured] | None) -> dict[str, Any]:
    """Counts of drafting and what a draft step costs."""
    total = {name: _sum(column, name) for name in (*SUMS, "draft_seconds", "verify_seconds")}
    rejected = sum(rejections(each["stats"]) for each in column)
    per_prompt = [[each["stats"]["accepted"] for each in column], [each["stats"]["drafted"] for each in column]]
    step = _divide(total["draft_seconds"], total["draft_steps"])
    plain_step = plain and _divide(_sum(plain, "verify_seconds"), _sum(plain, "rounds"))
    return {
        "mode": column[0]["stats"]["mode"],
        **{name: total[name] for name in SUMS if name not in ("skipped", "depth")},
        "rounds_with_rejection": rejected,
        "acceptance_rate": _plain(interval(per_prompt, ratio)),
        "beta": _divide(total["accepted"], total["accepted"] + rejected),
        "mean_accept_length": total["new_tokens"] / total["rounds"],
        "mean_gamma": total["drafted"] / total["rounds"],
        "mean_skip": _divide(total["skipped"], total["draft_steps"]),
        "serial_depth": _divide(total["depth"], total["draft_steps"]),
        "draft_step_ms": None if step is None else 1000 * step,
        "plain_step_ms": plain_step and 1000 * plain_step,
        "c": step and plain_step and step / plain_step,
        "c_verify": step and step / (total["verify_seconds"] / total["rounds"]),
    }


def _analysis(row: dict[str, Any]) -> dict[str, Any]:
    """The analytic speedup over plain decoding E / (γ̄c + 1), and the share of it that the decode speed reaches.

    The formula's acceptance is that of a position which is tested, so it takes β, not α = accepted / drafted. Once
    with E from β, once with the measured tokens per round, which the formula's independence does not have to explain.
    Where γ varies from round to round, both take its mean, rounds without a draft included.
    """
    if row["c"] is None or row["beta"] is None:
        return {"expected_length": None, "analytic_speedup": None, "share_of_analytic": None}
    expected = expected_length(row["beta"], row["mean_gamma"])
    cost = row["mean_gamma"] * row["c"] + 1
    analytic = {"from_beta": expected / cost, "from_length": row["mean_accept_length"] / cost}
    measured = row["decode_over_plain"]["value"]
    shares = {name: measured / value for name, value in analytic.items()}
    return {"expected_length": expected, "analytic_speedup": analytic, "share_of_analytic": shares}


def _over(column: list[Measured], other: list[Measured]) -> dict[str, Any]:
    """Total speed over another's: ratio of sums with its interval, and the median of the prompts' own ratios."""
    columns = [[*map(part, each)] for each in (column, other) for part in (_tokens, _seconds)]
    ratios = [
        _tokens(one) / _seconds(one) * _seconds(two) / _tokens(two) for one, two in zip(column, other, strict=True)
    ]
    return {"ratio": _plain(interval(columns, ratio_of_ratios)), "median": median(ratios)}


def _decode_columns(*parts: list[Measured]) -> list[list[float]]:
    return [
        values
        for part in parts
        for values in ([each["stats"]["new_tokens"] for each in part], [_decode_seconds(each) for each in part])
    ]


def _tokens(measured: Measured) -> int:
    return len(measured["ids"])


def _seconds(measured: Measured) -> float:
    return measured["seconds"]


def _decode_seconds(measured: Measured) -> float:
    return measured["stats"]["total_seconds"] - measured["stats"]["prefill_seconds"]


def _sum(column: list[Measured], name: str) -> float:
    return sum(each["stats"][name] for each in column)


def _divide(above: float, below: float) -> float | None:
    return above / below if below else None


def _plain(figure: Interval | None) -> dict[str, Any] | None:
    return figure and figure.as_dict()
