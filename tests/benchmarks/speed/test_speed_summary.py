"""The summary of speed comparisons: the same figures from the files, tables, plots, mistakes in one line."""

import json
import runpy

import pytest

from helpers import ROOT


def script(path: str):
    return runpy.run_path(str(ROOT / path))["main"]


@pytest.fixture(scope="module")
def measured(tiny_folder, tmp_path_factory):
    """A result file of two tiny models."""
    output = tmp_path_factory.mktemp("speed") / "speed.json"
    models = ["--target_model", str(tiny_folder("llama")), "--drafter_model", str(tiny_folder("llama", 1, 2))]
    few = ["--device", "cpu", "--prompts", "2", "--length", "6", "--gammas", "2", "--no_memory", "--no-progress"]
    assert script("evaluation/speed/evaluate_speed.py")([*models, *few, "--output", str(output)]) == 0
    return output


@pytest.fixture
def main():
    return script("summary/speed/summary_speed.py")


def test_the_rows_are_computed_anew(main, measured, tmp_path, capsys):
    output, plot = tmp_path / "summary.json", tmp_path / "plot.png"
    assert main(["--input", str(measured), "--output", str(output), "--plot", str(plot)]) == 0
    kept = json.loads(measured.read_text())
    (run,) = json.loads(output.read_text())["runs"]
    for name in ("rows", "equality", "left_out", "draft_step", "memory"):
        assert run[name] == kept[name]
    assert not run["partial"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(row["name"] in shown for row in kept["rows"])


def test_several_files_stand_side_by_side(main, measured, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(measured.read_text())
    output, plot = tmp_path / "summary.json", tmp_path / "plot.png"
    assert main(["--input", str(measured), str(other), "--output", str(output), "--plot", str(plot)]) == 0
    assert [run["input"] for run in json.loads(output.read_text())["runs"]] == [str(measured), str(other)]


def test_the_journal_of_an_unfinished_run(main, measured, tmp_path, capsys):
    kept = json.loads(measured.read_text())
    header = {"header": {name: kept[name] for name in ("benchmark", "settings", "versions", "pair")}}
    lines = [header, {"run": {}}, {"index": 0, "entry": kept["entries"][0]}]
    journal = tmp_path / "speed.json.partial.jsonl"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "summary.json"
    assert main(["--input", str(journal), "--output", str(output)]) == 0
    (run,) = json.loads(output.read_text())["runs"]
    assert (run["partial"], run["prompts"]) == (True, 1)
    assert run["draft_step"] is None
    assert "PARTIAL" in capsys.readouterr().out
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    assert main(["--input", str(journal), "--output", str(output)]) == 2
    assert "no prompt is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("[1]", "one JSON object"),
        ("{", "must be JSON"),
        ('{"benchmark": "mmlu", "entries": []}', "must be a result of evaluate_speed.py"),
        ('{"benchmark": "speed", "entries": [{"kind": "prompt"}]}', "incomplete"),
    ],
)
def test_files_that_are_none(main, tmp_path, text, words, capsys):
    path = tmp_path / "in.json"
    if text is not None:
        path.write_text(text)
    assert main(["--input", str(path), "--output", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert str(path) in said
    assert said.count("\n") == 1


def test_the_output_is_not_the_input(main, measured, capsys):
    assert main(["--input", str(measured), "--output", str(measured)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
