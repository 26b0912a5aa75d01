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
from math import cos, nan, pi, sin
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


def label_points(axes: Any, labels: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Write a short label next to each (x, y), clear of labels and points, with a thin line if that is not close by.

    The limits of the axes and the layout of the figure must be final.
    """
    axes.figure.draw_without_rendering()
    point = axes.figure.dpi / 72  # pixels
    frame = axes.get_window_extent()
    # x and y of the centre, half the width and the height of what labels must not cover, in points of the figure
    covered = [(*(axes.transData.transform(place) / point), 3.0, 6.0) for _, place in labels]
    for text, position in labels:
        x, y = axes.transData.transform(position) / point
        half = 0.32 * SMALL_FONT * len(text) + 1
        offsets = [
            (radius * cos(turn * pi / 8), radius * sin(turn * pi / 8))
            for radius in range(SMALL_FONT + 1, 400, SMALL_FONT)
            for turn in (2, 6, 14, 10, *range(16))
        ]
        across, up = next(
            (across, up)
            for across, up in offsets
            if frame.x0 < (x + across - half) * point
            and (x + across + half) * point < frame.x1
            and frame.y0 < (y + up - SMALL_FONT) * point
            and (y + up + SMALL_FONT) * point < frame.y1
            and not any(
                abs(x + across - a) < half + other and abs(y + up - b) < height for a, b, other, height in covered
            )
        )
        covered.append((x + across, y + up, half, 1.3 * SMALL_FONT))
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 3}
        annotation = axes.annotate(
            text,
            position,
            (across, up),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL_FONT,
            zorder=4,
            arrowprops=line if across**2 + up**2 > (2 * SMALL_FONT) ** 2 else None,
        )
        annotation.set_in_layout(False)


def mark_not_measured(axes: Any) -> None:
    """Write "not measured" into empty axes."""
    centred = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, "not measured", backgroundcolor="white", **centred)
    axes.set_xticks([])
