"""tools/time_start.py on a tiny model: every stage is in the table; the times that it measures are not checked."""

from __future__ import annotations

import json
import re
import runpy

import pytest

from helpers import ROOT

SCRIPT = ROOT / "tools" / "time_start.py"


@pytest.fixture
def main():
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.mark.slow
def test_every_stage_is_in_the_table(main, tiny_folder, capsys) -> None:
    assert main(["--model", str(tiny_folder("llama")), "--length", "3"]) == 0
    table = capsys.readouterr().out
    cells = re.findall(r"│ (.+?) │ +(\S+) │ +(\S+) │", table)
    rows = {name.strip(): (float(wall), float(cpu)) for name, wall, cpu in cells}
    parts = ("import torch", "import transformers", "config and tokenizer", "the answer, 3 tokens")
    whole, chat = rows.pop("the whole command"), rows.pop("a chat, until its first line")
    assert chat[0] > 0
    assert all(any(name.startswith(part) for name in rows) for part in (*parts, "weights of the drafter", "the rest"))
    assert whole[1] == pytest.approx(sum(cpu for _, cpu in rows.values()), abs=0.1)  # rounded


def test_stages_of_one_process(main, tiny_folder, capsys) -> None:
    assert main(["--model", str(tiny_folder("llama")), "--length", "2", "--stages"]) == 0
    stages = json.loads(capsys.readouterr().out)
    assert stages[-1]["name"] == "the answer, 2 tokens"
    assert all(stage["wall_seconds"] >= 0 for stage in stages)


def test_summary_has_the_smallest_times_and_the_rest():
    tool = runpy.run_path(str(SCRIPT))
    stage = tool["Stage"]
    runs = [
        [stage("a", 2.0, 1.0), stage("b", 1.0, 4.0), stage("whole", 9.0, 8.0), stage("chat", 5.0, 5.0)],
        [stage("a", 1.0, 2.0), stage("b", 3.0, 3.0), stage("whole", 8.0, 9.0), stage("chat", 4.0, 6.0)],
    ]
    assert tool["summarize"](runs) == [
        stage("a", 1.0, 1.0),
        stage("b", 1.0, 3.0),
        stage(tool["REST"], 6.0, 4.0),
        stage("whole", 8.0, 8.0),
        stage("chat", 4.0, 5.0),
    ]


def test_a_wrong_model_is_one_line(main, capsys) -> None:
    assert main(["--model", "no/such/folder"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model = 'no/such/folder'")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["--runs", "0"])
