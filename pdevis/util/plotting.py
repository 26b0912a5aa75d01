"""Figures that need no display: made, saved as PNG, with error bars. matplotlib is imported at first use."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import nan
from pathlib import Path
from typing import Any

from pdevis.util.files import write_atomic


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_atomic(path, image.getvalue())


def error_bars(figures: Sequence[dict[str, Any] | None], scale: float = 1) -> tuple[list[float], list[list[float]]]:
    """Values and the lengths of their error bars down and up; nan for what was not measured, 0 without interval."""
    values = [nan if each is None else scale * each["value"] for each in figures]
    lengths = []
    for end in ("low", "high"):
        ends = [
            value if each is None or each[end] is None else scale * each[end] for each, value in zip(figures, values)
        ]
        lengths.append([max(0.0, (end_ - value) * (1 if end == "high" else -1)) for end_, value in zip(ends, values)])
    return values, lengths


def not_measured(axes: Any) -> None:
    place = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, "not measured", backgroundcolor="white", **place)
    axes.set_xticks([])
