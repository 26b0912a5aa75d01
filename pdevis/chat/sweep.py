"""Several γ on one prompt, beside the target alone: measurements, table and plot.

The methods take turns, and each second pass runs them in reverse order, so that a machine that warms up or slows down
does not favour any of them. Speeds are sums over the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pdevis.chat import render
from pdevis.config import DecodeConfig
from pdevis.generation import DecodeStats, sum_stats

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

PASSES = 2
WARM_UP_TOKENS = 8
MAX_TOKENS = 64  # per run: enough for a rate, short enough to wait for
DEFAULT_GAMMAS = (2, 4, 6, 8)
DEFAULT_PROMPT = "Explain in a few sentences why the sky is blue and the sunset is red."


@dataclass
class SweepRow:
    """One setting: `gamma` None is the target alone. `stats` are summed over the passes."""

    gamma: int | None
    stats: DecodeStats


def run_sweep(
    pair: SpeculativePair,
    ids: list[int],
    config: DecodeConfig,
    gammas: Sequence[int],
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[SweepRow]:
    """Measure the target alone and each γ on the prompt `ids`, at most `MAX_TOKENS` tokens a run.

    Raises:
        ValueError: a γ that is not allowed, or a prompt that the pair refuses.
    """
    config = replace(config, max_new_tokens=min(config.max_new_tokens, MAX_TOKENS))
    settings = [None, *(replace(config, gamma=gamma) for gamma in dict.fromkeys(gammas))]
    runs: list[list[DecodeStats]] = [[] for _ in settings]
    short = replace(config, max_new_tokens=min(config.max_new_tokens, WARM_UP_TOKENS))
    on_progress("warming up")
    for method in ("target", "speculative"):
        pair.generate(ids, short, method=method)
    for turn in range(PASSES):
        order = range(len(settings))
        for i in order if turn % 2 == 0 else reversed(order):
            chosen = settings[i]
            on_progress(
                f"pass {turn + 1} of {PASSES}: " + ("target alone" if chosen is None else f"gamma {chosen.gamma}")
            )
            method = "target" if chosen is None else "speculative"
            runs[i].append(pair.generate(ids, chosen or config, method=method).stats)
    return [SweepRow(chosen and chosen.gamma, sum_stats(stats)) for chosen, stats in zip(settings, runs, strict=True)]


def show_sweep(console: Console, rows: Sequence[SweepRow], mode: str) -> None:
    """The table of a sweep."""
    base = rows[0].stats
    cells = [
        (
            "target alone" if row.gamma is None else str(row.gamma),
            render.number(row.stats.tokens_per_second),
            render.ratio(row.stats, base),
            render.percent(row.stats.acceptance_rate),
            render.number(row.stats.mean_accept_length, 2) if row.gamma else "–",
        )
        for row in rows
    ]
    title = f"Drafting mode {mode}, {render.tokens(base.new_tokens // PASSES)} a run, {PASSES} runs each"
    console.print(render.grid(title, ("gamma", "tok/s", "to target", "acceptance", "tokens per round"), cells))


def save_plot(rows: Sequence[SweepRow], path: Path, title: str) -> None:
    """Draw speed and acceptance against γ into a PNG file that must not exist yet (FileExistsError)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    base, points = rows[0].stats, sorted(rows[1:], key=lambda row: row.gamma or 0)
    gammas = [row.gamma for row in points]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    speed, acceptance = figure.subplots(1, 2)
    speed.plot(gammas, [row.stats.tokens_per_second or nan for row in points], "o-", color="black", label="speculative")
    if base.tokens_per_second:
        speed.axhline(base.tokens_per_second, linestyle="--", color="0.45", label="target alone")
    speed.set_ylabel("speed (tokens/s)")
    speed.set_ylim(0, 1.1 * speed.get_ylim()[1])
    speed.legend(loc="lower right")
    rates = [row.stats.acceptance_rate for row in points]
    acceptance.plot(gammas, [nan if rate is None else 100 * rate for rate in rates], "s-", color="black")
    acceptance.set_ylabel("acceptance rate (%)")
    acceptance.set_ylim(0, 105)
    for axes in (speed, acceptance):
        axes.set_xlabel("γ (draft tokens per round)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.88")
    figure.suptitle(title, fontsize=10)
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    with path.open("xb") as file:
        file.write(image.getvalue())
