"""The plotting style of all scripts: made for print, so shades, hatches and markers tell parts apart, never colour
alone. Figures need no display and are saved as PNG. matplotlib is imported at first use.

    figure = new_figure(8, 4)
    axes = figure.subplots()
    style_grid(axes, "x")
    save(figure, Path("plot.png"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import nan
from pathlib import Path
from typing import Any, Literal

from pdevis.util.files import write_atomic

SMALL_FONT = 8  # points, of legends and labels of data points
DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all. Raises OSError if it cannot be written."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    write_atomic(path, image.getvalue())


def style_grid(axes: Any, axis: Literal["x", "y", "both"]) -> None:
    """Draw light grid lines below the data."""
    axes.grid(axis=axis, color="0.88")
    axes.set_axisbelow(True)


def error_bars(
    intervals: Sequence[Mapping[str, Any] | None], scale: float = 1
) -> tuple[list[float], list[list[float]]]:
    """Return values, and the lengths of their error bars down and up.

    Args:
        intervals: {"value", "low", "high"} each. None has the value nan; a missing interval has bars of length 0.
        scale: factor, 100 for percent.
    """
    values = [nan if interval is None else scale * interval["value"] for interval in intervals]
    lengths = []
    for key, sign in (("low", -1), ("high", 1)):
        ends = [
            value if interval is None or interval[key] is None else scale * interval[key]
            for interval, value in zip(intervals, values, strict=True)
        ]
        lengths.append([max(0.0, sign * (end - value)) for end, value in zip(ends, values, strict=True)])
    return values, lengths


def mark_not_measured(axes: Any) -> None:
    """Write "not measured" into empty axes."""
    centred = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, "not measured", backgroundcolor="white", **centred)
    axes.set_xticks([])
