"""tools/bench_waiting.py: environments of the policies, and a run with a tiny model."""

from __future__ import annotations

import os
import runpy

import pytest

from helpers import ROOT

tool = runpy.run_path(str(ROOT / "tools" / "bench_waiting.py"))


def test_environments(monkeypatch):
    for name in tool["VARIABLES"]:
        monkeypatch.setenv(name, "7")
    environment = tool["environment"]
    assert not environment("none").keys() & set(tool["VARIABLES"])
    assert environment("passive")["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment("spin:300")["GOMP_SPINCOUNT"] == "300"
    assert environment("threads:1")["OMP_NUM_THREADS"] == "1"
    assert environment("none")["PATH"] == os.environ["PATH"]
    for wrong in ("spin", "spin:x", "fast"):
        with pytest.raises(ValueError, match=f"'{wrong}' must be none, auto, passive, spin:N or threads:N"):
            environment(wrong)


@pytest.mark.slow
def test_a_run(tiny_folder, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    argv = ["--model", str(tiny_folder("llama")), "--length", "4", "--rounds", "1", "--policies", "threads:1"]
    assert tool["main"](argv) == 0
    assert "(1.00)" in capsys.readouterr().out
    assert tool["main"](["--model", "no/such/folder", "--policies", "none"]) == 2
    assert "does not exist" in capsys.readouterr().err
