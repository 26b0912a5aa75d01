"""The simulator's plot shows all of its rows."""

from __future__ import annotations

from helpers.recordings import exact_trace
from pdevis.simulate.__main__ import build_parser, simulate_flags
from pdevis.simulate.simulation_output import plot_simulation


def test_every_point_lies_inside(tmp_path):
    """Also if a later threshold, which only the right axes show, is the fastest."""
    flags = ["--devices", "1,2", "--keep_first", "1", "--thresholds", "0.99,0.9"]
    simulation = simulate_flags(build_parser().parse_args(["--trace", str(exact_trace(tmp_path)), *flags]))
    for axes in plot_simulation(simulation).axes:
        points = [value for line in axes.lines if line.get_marker() != "None" for value in line.get_ydata()]
        low, high = axes.get_ylim()
        assert points
        assert all(low <= value <= high for value in points)
