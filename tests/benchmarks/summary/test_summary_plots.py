"""The plots: every axis is labelled, no two texts overlap, methods can be told apart without colour."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from helpers.results import GroupedTask, SpecTask, entries, save
from pdevis.benchmarks.ablation.ablation_plot import labels_of, plot_grid
from pdevis.benchmarks.summary.load_results import load_run
from pdevis.benchmarks.summary.summarize import summarize
from pdevis.benchmarks.summary.summary_plot import HATCHES, MARKERS, plot_summary
from pdevis.util.plotting import error_bars


def hidden_labels(axis: Any) -> list[Text]:
    """Return the labels of ticks that matplotlib does not draw: outside the axis limits, or disabled."""
    low, high = sorted(axis.get_view_interval())
    ticks = axis.get_major_ticks()
    return [
        label
        for tick in ticks
        for label, shown in ((tick.label1, tick.label1.get_visible()), (tick.label2, False))
        if not shown or not low <= tick.get_loc() <= high
    ]


def check_figure(figure: Any) -> None:
    """Check that all axes have labels, and that all texts are inside the figure and do not overlap."""
    figure.canvas.draw()
    axes = [each for part in [figure, *figure.subfigs] for each in part.axes]
    assert axes
    assert all(each.get_xlabel() or each.get_xticklabels() or each.texts for each in axes)
    assert all(each.get_ylabel() or each.get_xlabel() for each in axes)
    hidden = {id(label) for each in axes for axis in (each.xaxis, each.yaxis) for label in hidden_labels(axis)}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in found if id(text) not in hidden]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]  # without the lines of annotations
    for name, box in boxes:
        assert box.x0 >= -1, f"{name!r} is outside the figure"
        assert box.x1 <= figure.bbox.x1 + 1, f"{name!r} is outside the figure"
    for (one, box), (other, second) in itertools.combinations(boxes, 2):
        assert not box.shrunk(0.98, 0.9).overlaps(second.shrunk(0.98, 0.9)), f"{one!r} overlaps {other!r}"


def summary_of(tmp_path: Path, benchmark: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    path = save(tmp_path / "results", results, benchmark)
    return summarize(load_run(path, benchmark), SpecTask() if benchmark == "specbench" else GroupedTask())


@pytest.mark.parametrize("groups", [1, 3, 57])
def test_plot_with_few_and_many_groups(groups: int, tmp_path: Path) -> None:
    results = entries("mmlu", max(40, 2 * groups))
    for i, entry in enumerate(results):
        entry["subject"] = f"a_subject_with_a_long_name_{i % groups}"
    check_figure(plot_summary(summary_of(tmp_path, "mmlu", results)))


def test_plot_of_spec_bench_shows_ratio_and_length_per_group(tmp_path: Path) -> None:
    figure = plot_summary(summary_of(tmp_path, "specbench", entries("specbench", 30)))
    check_figure(figure)
    labels = [axes.get_xlabel() for part in figure.subfigs for axes in part.axes]
    assert "speed, speculative / target" in labels
    assert "mean accepted length (tokens per round)" in labels


def test_plot_of_one_method_says_what_is_not_measured(tmp_path: Path) -> None:
    figure = plot_summary(summary_of(tmp_path, "mmlu", entries("mmlu", 4, methods=("drafter",))))
    check_figure(figure)
    assert "not measured" in [text.get_text() for text in figure.findobj(Text)]


def test_bars_have_the_values_and_intervals_of_the_summary(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "mmlu", entries("mmlu", 20))
    speed = plot_summary(summary).subfigs[0].axes[0]
    heights = [bar.get_height() for bar in speed.patches]
    figures = [summary["methods"][name]["tokens_per_second"] for name in ("target", "drafter", "speculative")]
    assert heights == [figure["value"] for figure in figures]
    assert speed.get_ylabel() == "speed (tokens/s)"
    values, (down, up) = error_bars([*figures, None], 2)
    assert values[:3] == [2 * figure["value"] for figure in figures]
    assert [v - d for v, d in zip(values, down)][:3] == pytest.approx([2 * figure["low"] for figure in figures])
    assert [v + u for v, u in zip(values, up)][:3] == pytest.approx([2 * figure["high"] for figure in figures])


def test_methods_differ_without_colour() -> None:
    assert len(set(HATCHES.values())) == len(set(MARKERS.values())) == 3


def cell(mode: str, speedup: float, retention: float, threshold: float | None = 0.9, **more: Any) -> dict[str, Any]:
    figures = {
        name: {"value": value, "low": value * 0.95, "high": value * 1.05}
        for name, value in (("draft_speedup", speedup), ("retention", retention))
    }
    setting = {"mode": mode, "check": "planned", "threshold": threshold, "window": 2, "gamma": 4}
    return setting | {"frontier": False, "serial_depth": {"value": 24 / speedup}} | figures | more


@pytest.mark.parametrize("count", [1, 14, 60])
def test_labels_of_the_grid_do_not_overlap(count: int) -> None:
    """Many points lie close together."""
    cells = [cell("exact", 1, 1, None, frontier=True)]
    cells += [
        cell("skip", 1.2 + 0.001 * i, 0.8 + 0.0001 * i, 0.8 + 0.001 * i, frontier=i % 9 == 0) for i in range(count)
    ]
    summary = {"benchmark": "mmlu", "partial": False, "items": 5, "cells": cells}
    check_figure(plot_grid(summary))


def test_grid_without_a_measured_cell() -> None:
    bare = {"mode": "skip", "check": None, "threshold": None, "window": None, "gamma": 4}
    check_figure(plot_grid({"benchmark": "mmlu", "partial": True, "items": 0, "cells": [bare]}))


def test_labels_name_what_varies() -> None:
    cells = [cell("exact", 1, 1, None), cell("skip", 1, 1, 0.8), cell("skip", 1, 1, 0.9)]
    assert labels_of(cells) == ["exact", "skip τ0.8", "skip τ0.9"]
    cells[1]["gamma"] = 6
    assert labels_of(cells) == ["exact γ4", "skip τ0.8 γ6", "skip τ0.9 γ4"]
