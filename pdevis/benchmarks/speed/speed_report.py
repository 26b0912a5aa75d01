"""Turn the measurements of a speed comparison into its summary: one row per decoder, with 95 % intervals.

Everything is a ratio of sums over prompts, and the prompts are resampled together for all decoders. What was not
measured is None, never 0. Loads no model.

    python summary/speed/summary_speed.py --input speed.json --output speed_summary.json --plot speed.png

Symbols: α = accepted / drafted; β = accepted / (accepted + rounds with a rejection), the acceptance of a position
given that it is tested; γ̄ = drafted / rounds; c = a draft step's time / a plain decoding step's time.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pdevis.benchmarks.bootstrap import as_json, describe_bootstrap, interval, ratio, ratio_of_ratios
from pdevis.benchmarks.peak_memory import summarize_memory
from pdevis.benchmarks.runs.journal import SUFFIX, read_journals, read_result
from pdevis.benchmarks.speed.baselines import DRAFT_STEP, GENERATE
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.benchmarks.speed.draft_step import summarize_steps
from pdevis.benchmarks.summary.metrics import compare_drafting

BENCHMARK = "speed"
PROMPT, MEMORY = "prompt", "memory"  # kinds of entries, with DRAFT_STEP
REFERENCES = (PLAIN, GENERATE)  # decoders that the others are compared with
COUNTS = ("drafted", "draft_steps", "accepted", "new_tokens", "rounds", "fallback_rounds")

Entry = dict[str, Any]  # one finished unit of work, as result files hold it
Row = dict[str, Any]  # the metrics of one decoder, as summaries hold them


class Rows(NamedTuple):
    """One row per decoder, and the reason for each decoder that has none."""

    rows: list[Row]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Results:
    """The measurements of one decoder as result files hold them, one per prompt, in the order of the prompts."""

    name: str
    entries: list[dict[str, Any]]

    @property
    def tokens(self) -> list[int]:
        """New tokens per prompt."""
        return [len(entry["ids"]) for entry in self.entries]

    @property
    def seconds(self) -> list[float]:
        """Seconds per prompt, prefill included."""
        return [entry["seconds"] for entry in self.entries]

    @property
    def stats(self) -> list[dict[str, Any]]:
        """Statistics per prompt; only decoders of pdevis have them."""
        return [entry["stats"] for entry in self.entries]

    @property
    def decode_seconds(self) -> list[float]:
        """Seconds per prompt without prefill."""
        return [stats["total_seconds"] - stats["prefill_seconds"] for stats in self.stats]

    def column(self, name: str) -> list[float]:
        """One statistic per prompt."""
        return [stats[name] for stats in self.stats]

    def total(self, name: str, default: float | None = None) -> float:
        """Sum of a statistic; files of earlier versions may lack it if it has a default."""
        return sum(stats[name] if default is None else stats.get(name, default) for stats in self.stats)


def summarize(entries: Sequence[Entry], meta: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """Return the summary, ready for JSON.

    Args:
        entries: finished units of any "kind": prompt, draft-step, memory.
        meta: the run's header or meta data: settings, pair, and (of a finished run) times and versions.
        partial: True if the run has not finished.

    Raises:
        ValueError: if no prompt is finished.
    """
    prompts = [entry for entry in entries if entry["kind"] == PROMPT]
    if not prompts:
        raise ValueError("no prompt is finished: there is nothing to summarise")
    others = {entry["kind"]: entry for entry in entries if entry["kind"] != PROMPT}
    rows, left_out = make_rows(prompts)
    settings = meta.get("settings") or {}
    return {
        "benchmark": BENCHMARK,
        "partial": partial,
        "pair": meta.get("pair"),
        "settings": settings,
        "prompts": len(prompts),
        "intervals": describe_bootstrap("percentile bootstrap over prompts"),
        "rows": rows,
        "equality": equality(rows),
        "left_out": {**(settings.get("left_out") or {}), **left_out},
        "draft_step": summarize_steps(others.get(DRAFT_STEP), rows),
        "memory": summarize_memory(others.get(MEMORY)),
        "categories": by_category(prompts, rows),
    }


def make_rows(prompts: Sequence[Entry]) -> Rows:
    """Compute one row per decoder from the entries of finished prompts."""
    left_out = {name: reason for entry in prompts for name, reason in entry["left_out"].items()}
    results = {}
    for name in dict.fromkeys(name for entry in prompts for name in entry["contestants"]):
        measured = [entry["contestants"][name] for entry in prompts if name in entry["contestants"]]
        if len(measured) == len(prompts):
            results[name] = Results(name, measured)
        else:
            left_out[name] = f"measured on {len(measured)} of {len(prompts)} prompts only"
    rows = [make_row(name, results) for name in results]
    add_device_metrics(rows, results)
    return Rows(rows, left_out)


def make_row(name: str, results: Mapping[str, Results]) -> Row:
    """Compute the metrics of one decoder; `results` holds those of all decoders on the same prompts."""
    own, plain = results[name], results.get(PLAIN)
    first = own.entries[0]
    row: Row = {"name": name, **{key: first[key] for key in ("kind", "gamma", "compared", "note")}}
    row |= {key: first.get(key) for key in ("draft_device", "overlap")}
    row |= {"prompts": len(own.entries), "tokens": sum(own.tokens), "seconds": sum(own.seconds)}
    row["tokens_per_second"] = as_json(interval([own.tokens, own.seconds], ratio))
    row["over"] = {other: speed_over(own, results[other]) for other in REFERENCES if other in results and other != name}
    if plain:
        row["same_ids"] = sum(one["ids"] == other["ids"] for one, other in zip(own.entries, plain.entries, strict=True))
    if first["stats"]:
        row |= _round_metrics(own, plain)
    if row["kind"] == "speculative":
        row |= _drafting_metrics(own, plain)
        row |= _analytic_speedup(row)
    return row


def speed_over(own: Results, other: Results) -> dict[str, Any]:
    """Return the speed over another decoder's: ratio of sums with its interval, and median of the prompts' ratios."""
    ratios = [
        tokens / seconds * other_seconds / other_tokens
        for tokens, seconds, other_tokens, other_seconds in zip(
            own.tokens, own.seconds, other.tokens, other.seconds, strict=True
        )
    ]
    columns = [own.tokens, own.seconds, other.tokens, other.seconds]
    return {"ratio": as_json(interval(columns, ratio_of_ratios)), "median": median(ratios)}


def _round_metrics(own: Results, plain: Results | None) -> Row:
    """Return decode speed without prefill, and how the time of a round is divided."""
    names = ("rounds", "draft_seconds", "verify_seconds", "prefill_seconds")
    rounds, draft, verify, prefill = (own.total(name) for name in names)
    decode = sum(own.decode_seconds)
    seconds = {"draft": draft, "verify": verify, "rest": decode - draft - verify}
    columns = [own.column("new_tokens"), own.decode_seconds]
    over_plain = None
    if plain:
        over_plain = interval([*columns, plain.column("new_tokens"), plain.decode_seconds], ratio_of_ratios)
    return {
        "decode_seconds": decode,
        "prefill_seconds": prefill,
        "decode_tokens_per_second": as_json(interval(columns, ratio)),
        "decode_over_plain": as_json(over_plain),
        "round_ms": {part: 1000 * value / rounds for part, value in seconds.items()},
        "round_share": {part: value / decode for part, value in seconds.items()},
    }


def _drafting_metrics(own: Results, plain: Results | None) -> Row:
    """Return the counts of drafting and the cost of a draft step."""
    total = {name: own.total(name) for name in (*COUNTS, "skipped", "depth", "draft_seconds", "verify_seconds")}
    rejected = sum(map(rejections, own.stats))
    step = _divide(total["draft_seconds"], total["draft_steps"])
    plain_step = _divide(plain.total("verify_seconds"), plain.total("rounds")) if plain else None
    return {
        "mode": own.stats[0]["mode"],
        **{name: total[name] for name in COUNTS},
        "rounds_with_rejection": rejected,
        "acceptance_rate": as_json(interval([own.column("accepted"), own.column("drafted")], ratio)),
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


def _analytic_speedup(row: Row) -> Row:
    """Return the analytic speedup over plain decoding E / (γ̄c + 1), and the fraction of it that decoding reaches.

    The formula's acceptance is that of a position which is tested, so it takes β, not α = accepted / drafted. It is
    computed once with E from β, once with the measured tokens per round, which does not assume that positions are
    independent. If γ varies from round to round, both take its mean, rounds without a draft included.
    """
    if row["c"] is None or row["beta"] is None:
        return {"expected_length": None, "analytic_speedup": None, "share_of_analytic": None}
    expected = expected_length(row["beta"], row["mean_gamma"])
    cost = row["mean_gamma"] * row["c"] + 1
    analytic = {"from_beta": expected / cost, "from_length": row["mean_accept_length"] / cost}
    measured = row["decode_over_plain"]["value"]
    reached = {name: measured / value for name, value in analytic.items()}
    return {"expected_length": expected, "analytic_speedup": analytic, "share_of_analytic": reached}


def expected_length(beta: float, gamma: float) -> float:
    """Return E = (1 − β^(γ+1)) / (1 − β), the tokens of a round whose positions are accepted with probability β."""
    return gamma + 1 if beta >= 1 else (1 - beta ** (gamma + 1)) / (1 - beta)


def rejections(stats: Mapping[str, Any]) -> int:
    """Return the number of rounds in which a draft token was rejected; each accepted length has one bonus token."""
    lengths = zip(stats["accept_lengths"], stats["draft_lengths"], strict=True)
    return sum(added - 1 < drafted for added, drafted in lengths)


def add_device_metrics(rows: Sequence[Row], results: Mapping[str, Results]) -> None:
    """Add "devices" to the rows that were measured on named devices or with overlap.

    Draft speedup and retention are over `exact` with the same γ on the first devices; the gain of drafting ahead is
    total speed over the same decoder without it.
    """
    without_overlap = {row["overlap"] for row in rows}
    ours = [row for row in rows if row["draft_device"] or row["overlap"] or row["name"] in without_overlap]
    for row in ours:
        own = results[row["name"]]
        candidates = [other for other in ours if other["gamma"] == row["gamma"] and not other["overlap"]]
        exact = next((other["name"] for other in candidates if other["mode"] == "exact"), None)
        same = next((other["name"] for other in candidates if row["overlap"] == other["name"]), None)
        metrics: Row = {"base": exact, "without_overlap": same}
        if exact and not row["overlap"]:
            metrics |= compare_drafting(own.stats, results[exact].stats, tokens="draft_steps")
        if same:
            other = results[same]
            metrics["overlap"] = speed_over(own, other)["ratio"]
            columns = [own.tokens, own.decode_seconds, other.tokens, other.decode_seconds]
            metrics["overlap_decode"] = as_json(interval(columns, ratio_of_ratios))
        for name in ("ahead_rounds", "ahead_dropped", "rounds"):
            metrics[name] = own.total(name, default=0)
        for name, idle in (("target_idle_ms", "draft_seconds"), ("drafter_idle_ms", "drafter_idle_seconds")):
            metrics[name] = 1000 * own.total(idle, default=0.0) / metrics["rounds"]
        row["devices"] = metrics


def equality(rows: Sequence[Row]) -> dict[str, Any]:
    """Compare the greedy ids of all decoders with those of plain decoding, as far as they must be equal."""
    compared = [row for row in rows if row["compared"] and row.get("same_ids") is not None]
    different = {row["name"]: row["prompts"] - row["same_ids"] for row in compared if row["same_ids"] < row["prompts"]}
    return {
        "reference": PLAIN,
        "compared": [row["name"] for row in compared if row["name"] != PLAIN],
        "all_equal": not different,
        "different": different,
        "not_compared": {row["name"]: row["note"] for row in rows if not row["compared"]},
    }


def by_category(prompts: Sequence[Entry], rows: Sequence[Row]) -> dict[str, Any]:
    """Return each decoder's speed over plain decoding per category of the prompts; {} if they have none."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in prompts:
        if entry["category"] is not None:
            groups.setdefault(entry["category"], []).append(entry["contestants"])
    names = [row["name"] for row in rows if row["name"] != PLAIN]
    summary = {}
    for category, group in sorted(groups.items()):
        plain = Results(PLAIN, [decoders[PLAIN] for decoders in group])
        over_plain = {
            name: speed_over(Results(name, [decoders[name] for decoders in group]), plain)["ratio"] for name in names
        }
        summary[category] = {"prompts": len(group), "over_plain": over_plain}
    return summary


def _divide(above: float, below: float) -> float | None:
    return above / below if below else None


def load_speed(path: Path) -> dict[str, Any]:
    """Return the summary of a result file of evaluate_speed.py, or of the journal of its unfinished run.

    Raises:
        ValueError: for a file that is missing, broken, or of something else; in one line.
    """
    partial = path.name.endswith(SUFFIX)
    try:
        header, entries = _read_journal(path) if partial else _read_result(path)
        if header.get("benchmark") != BENCHMARK or not isinstance(entries, list):
            raise ValueError("must be a result of evaluate_speed.py")
        return {"input": str(path)} | summarize(entries, header, partial=partial)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: an entry is incomplete: {type(error).__name__} {error}") from None


def _read_journal(path: Path) -> tuple[dict[str, Any], Any]:
    """Return the header and the entries in order."""
    journals = read_journals([path])
    if not journals:
        return {}, []
    return journals[0].header or {}, [entry for _, entry in sorted(journals[0].entries.items())]


def _read_result(path: Path) -> tuple[dict[str, Any], Any]:
    """Return the meta data and the entries."""
    result = read_result(path)
    if not isinstance(result, dict):
        raise ValueError("must be a result of evaluate_speed.py: one JSON object")
    return result, result.pop("entries", None)


def run_speed_summary(args: Namespace) -> None:
    """Read results, then write, print and plot their summaries. Raises ValueError for a user's mistake."""
    from pdevis.benchmarks.speed.speed_table import show_speed
    from pdevis.benchmarks.summary.summary_script import check_targets, write_summary
    from pdevis.util.console import make_console

    runs = [load_speed(path) for path in args.input]
    check_targets(args.input, {"--output": args.output, "--plot": args.plot})
    write_summary({"benchmark": BENCHMARK, "runs": runs}, args.output)
    if args.plot is not None:
        from pdevis.benchmarks.speed.speed_plot import draw_speed

        draw_speed(runs, args.plot)
    for run in runs:
        show_speed(make_console(), run)
