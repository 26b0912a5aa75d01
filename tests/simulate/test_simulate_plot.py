"""The simulator's plot shows all that it was given."""

from __future__ import annotations

import json

from helpers.traces import exact_trace
from pdevis.simulate.__main__ import main
from pdevis.simulate.simulation_plot import plot_simulation


def test_every_point_lies_inside(tmp_path, capsys):
    """Also where a later threshold, on the right only, is the fastest."""
    flags = ["--devices", "1,2", "--keep_first", "1", "--thresholds", "0.99,0.9", "--json"]
    assert main(["--trace", str(exact_trace(tmp_path)), *flags]) == 0
    for axes in plot_simulation(json.loads(capsys.readouterr().out)).axes:
        points = [value for line in axes.lines if line.get_marker() != "None" for value in line.get_ydata()]
        low, high = axes.get_ylim()
        assert points
        assert all(low <= value <= high for value in points)
