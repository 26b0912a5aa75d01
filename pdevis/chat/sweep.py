"""Several γ, and γ = auto, on one prompt, compared with the target alone: measurements, table and plot.

All settings are measured in every pass, in an order that changes from pass to pass. Speeds are sums over the passes;
the smallest and the largest speedup of a pass show how far they can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pdevis.chat import render
from pdevis.config import AUTO, DecodeConfig
from pdevis.generation import DecodeStats
from pdevis.util.console import MISSING, format_number
from pdevis.util.plotting import new_figure, save, style_grid
from pdevis.util.prompts import measurement_order

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

PASSES = 2
WARM_UP_TOKENS = 8
MAX_TOKENS = 64  # per run: enough for a rate, short enough to wait for
DEFAULT_GAMMAS = (2, 4, 6, 8)
DEFAULT_PROMPT = "Explain in a few sentences why the sky is blue and the sunset is red."


@dataclass
class SweepRow:
    """Statistics of one γ, of each pass and in sum. `gamma` None is the target alone."""

    gamma: int | str | None
    passes: list[DecodeStats]

    @property
    def stats(self) -> DecodeStats:
        return DecodeStats.sum(self.passes)


def run_sweep(
    pair: SpeculativePair,
    ids: list[int],
    *,
    config: DecodeConfig,
    gammas: Sequence[int | str],
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[SweepRow]:
    """Measure the target alone and each γ on the prompt `ids`, at most `MAX_TOKENS` tokens per run.

    Raises:
        ValueError: for a γ that is not allowed, or a prompt that the pair refuses.
    """
    config = replace(config, max_new_tokens=min(config.max_new_tokens, MAX_TOKENS))
    settings = [("target", None, config)]
    settings += [("speculative", gamma, replace(config, gamma=gamma)) for gamma in dict.fromkeys(gammas)]
    on_progress("warming up")
    short = replace(config, max_new_tokens=min(config.max_new_tokens, WARM_UP_TOKENS))
    for method in ("target", "speculative"):
        pair.generate(ids, short, method=method)
    runs: list[list[DecodeStats]] = [[] for _ in settings]
    for number in range(PASSES):
        for i in measurement_order(len(settings), number):
            method, gamma, setting = settings[i]
            name = "target alone" if gamma is None else f"gamma {gamma}"
            on_progress(f"pass {number + 1} of {PASSES}: {name}")
            runs[i].append(pair.generate(ids, setting, method=method).stats)
    return [SweepRow(gamma, stats) for (_, gamma, _), stats in zip(settings, runs, strict=True)]


def show_sweep(console: Console, rows: Sequence[SweepRow], *, mode: str) -> None:
    """Print the table of a sweep."""
    base = rows[0].stats
    cells = [
        (
            "target alone" if row.gamma is None else str(row.gamma),
            format_number(row.stats.tokens_per_second, 1),
            _format_speedup(row, rows[0]),
            render.format_percent(row.stats.acceptance_rate),
            format_number(row.stats.mean_accept_length, 2) if row.gamma else MISSING,
        )
        for row in rows
    ]
    title = f"Drafting mode {mode}, {render.format_tokens(base.new_tokens // PASSES)} per run, {PASSES} runs each"
    columns = ("gamma", "tok/s", "speedup (each run)", "acceptance", "tokens per round")
    render.print_table(console, title, columns=columns, rows=cells)


def _format_speedup(row: SweepRow, base: SweepRow) -> str:
    """Return the speedup over all passes, and its range from pass to pass."""
    whole = render.format_speedup(row.stats, base.stats)
    if row is base or whole == MISSING:
        return whole
    speeds = [(one.tokens_per_second, other.tokens_per_second) for one, other in zip(row.passes, base.passes)]
    each = [speed / base_speed for speed, base_speed in speeds if speed and base_speed]
    return f"{whole} ({min(each):.2f} to {max(each):.2f})" if each else whole


def save_plot(rows: Sequence[SweepRow], path: Path, *, title: str) -> None:
    """Draw speed and acceptance against γ, as a PNG file. Raises OSError if it cannot be written."""
    from matplotlib.ticker import MaxNLocator

    base, points = rows[0].stats, [row for row in rows if isinstance(row.gamma, int)]
    points.sort(key=lambda row: row.gamma)
    figure = new_figure(9, 4)
    speed, acceptance = figure.subplots(1, 2)
    _draw_speed(speed, points, base, next((row.stats for row in rows if row.gamma == AUTO), None))
    _draw_acceptance(acceptance, points)
    for axes in (speed, acceptance):
        axes.set_xlabel("γ (draft tokens per round)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style_grid(axes, "both")
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _draw_speed(axes: Any, points: Sequence[SweepRow], base: DecodeStats, auto: DecodeStats | None) -> None:
    speeds = [row.stats.tokens_per_second or nan for row in points]
    axes.plot([row.gamma for row in points], speeds, "o-", color="black", label="speculative")
    if base.tokens_per_second:
        axes.axhline(base.tokens_per_second, linestyle="--", color="0.45", label="target alone")
    if auto and auto.tokens_per_second:
        axes.axhline(auto.tokens_per_second, linestyle=":", color="black", label="γ = auto")
    axes.set_ylabel("speed (tokens/s)")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend(loc="lower right")


def _draw_acceptance(axes: Any, points: Sequence[SweepRow]) -> None:
    rates = [row.stats.acceptance_rate for row in points]
    percents = [nan if rate is None else 100 * rate for rate in rates]
    axes.plot([row.gamma for row in points], percents, "s-", color="black")
    axes.set_ylabel("acceptance rate (%)")
    axes.set_ylim(0, 105)
