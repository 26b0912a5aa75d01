"""Several devices in the speed comparison: where the drafter runs, and what lanes and drafting ahead are worth.

Draft speedup is draft tokens/s over those of `exact` on the first devices named, retention the acceptance rate over
that one's; what drafting ahead is worth is total speed over the same decoder without it. All are ratios of sums with
95 % bootstrap intervals over prompts.

    python evaluation/speed/evaluate_speed.py --draft_devices "cpu:0;cpu:0,cpu:1" --modes exact,skip,parallel --overlap
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.bootstrap import interval, ratio_of_ratios

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

TITLES = ("drafting on devices", "draft tokens/s x", "retention", "idle ms/round: target", "drafter")
TITLES += ("ahead / dropped / rounds", "x without overlap", "decode only")


def parse_layouts(text: str | None) -> list[str]:
    """The device lists of --draft_devices, separated by semicolons. Raises ValueError for an empty or repeated one."""
    if text is None:
        return []
    found = [part.strip() for part in text.split(";")]
    if "" in found or len(set(found)) < len(found):
        raise ValueError(f"--draft_devices: {text!r} must be different lists, such as 'cpu:0;cpu:0,cpu:1'")
    return found


def pairs_on(pair: SpeculativePair, layouts: Sequence[str]) -> list[tuple[str | None, SpeculativePair]]:
    """The pair itself on the first layout, and on each further one a pair of the same target with another drafter."""
    if not layouts:
        return [(None, pair)]
    return [(layouts[0], pair), *((layout, _elsewhere(pair, layout)) for layout in layouts[1:])]


def _elsewhere(pair: SpeculativePair, layout: str) -> SpeculativePair:
    from pdevis.devices import find_device_slots
    from pdevis.pair import SpeculativePair

    if not pair.workers:
        raise ValueError("--draft_devices: several device lists need a drafter in processes of its own")
    workers = pair.workers.respawn_on(find_device_slots(layout, "draft_devices"))
    labels = pair.labels | {"draft_device": layout}
    return SpeculativePair(pair.target, workers, pair.tokenizer, pair.eos_ids, pair.draft, labels, pair.profile)


def add_devices(rows: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]]) -> None:
    """Give rows measured on named devices, or with overlap, the figures of this module ("devices")."""
    without = {row.get("overlap") for row in rows}
    ours = [row for row in rows if row.get("draft_device") or row.get("overlap") or row["name"] in without]
    for row in ours:
        column = found[row["name"]]
        alike = [other for other in ours if other["gamma"] == row["gamma"] and not other["overlap"]]
        base = next((other for other in alike if other["mode"] == "exact"), None)
        same = next((other for other in alike if row["overlap"] and other["name"] == row["overlap"]), None)
        figures: dict[str, Any] = {"base": base and base["name"], "without_overlap": same and same["name"]}
        if base and not row["overlap"]:
            figures["draft_speedup"] = _ratio(column, found[base["name"]], "draft_steps", "draft_seconds")
            figures["retention"] = _ratio(column, found[base["name"]], "accepted", "drafted")
        if same:
            figures["overlap"] = _speed(column, found[same["name"]], whole=True)
            figures["overlap_decode"] = _speed(column, found[same["name"]], whole=False)
        for name in ("ahead_rounds", "ahead_dropped", "rounds"):
            figures[name] = sum(each["stats"].get(name, 0) for each in column)
        for name, spent in (("target_idle_ms", "draft_seconds"), ("drafter_idle_ms", "drafter_idle_seconds")):
            figures[name] = 1000 * sum(each["stats"].get(spent, 0.0) for each in column) / figures["rounds"]
        row["devices"] = figures


def table_rows(rows: Sequence[dict[str, Any]], bounds: Any, missing: str) -> list[tuple[str, ...]]:
    """What TITLES name, as text; `bounds(figure, digits)` writes a figure with its interval."""
    lines = []
    for row in rows:
        if not (found := row.get("devices")):
            continue
        ahead = f"{found['ahead_rounds']} / {found['ahead_dropped']} / {found['rounds']}"
        figures = [bounds(found.get(name), 2) for name in ("draft_speedup", "retention")]
        idle = [f"{found[name]:.1f}" for name in ("target_idle_ms", "drafter_idle_ms")]
        over = [bounds(found.get(name), 2) for name in ("overlap", "overlap_decode")]
        lines.append((row["name"], *figures, *idle, ahead if row["overlap"] else missing, *over))
    return lines


def _ratio(column: list[dict[str, Any]], other: list[dict[str, Any]], above: str, below: str) -> dict[str, Any] | None:
    columns = [[each["stats"][name] for each in part] for part in (column, other) for name in (above, below)]
    figure = interval(columns, ratio_of_ratios)
    return figure and figure.as_dict()


def _speed(column: list[dict[str, Any]], other: list[dict[str, Any]], whole: bool) -> dict[str, Any] | None:
    """Tokens per second over another's, with the prompt or without."""

    def seconds(each: dict[str, Any]) -> float:
        stats = each["stats"]
        return each["seconds"] if whole else stats["total_seconds"] - stats["prefill_seconds"]

    columns = [
        values for part in (column, other) for values in ([len(each["ids"]) for each in part], [*map(seconds, part)])
    ]
    figure = interval(columns, ratio_of_ratios)
    return figure and figure.as_dict()
