"""python -m pdevis.calibrate, and --check static with its file: tiny models, from flags to drafts."""

from __future__ import annotations

from typing import Any

import pytest

from pdevis import DecodeConfig, DraftConfig, load_pair
from pdevis.calibrate import calibrate_run, schedule_source
from pdevis.calibrate.__main__ import main
from pdevis.drafting.corrections import load_corrections


@pytest.fixture(autouse=True)
def _few_positions(monkeypatch, tmp_path):
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))
    for name in ("PART_POSITIONS", "SCHEDULE_POSITIONS"):
        monkeypatch.setattr(schedule_source, name, 16)


@pytest.fixture
def command(folders, tmp_path, capsys) -> Any:
    target, drafter = folders("qwen3")
    models = ["--target_model", target, "--drafter_model", drafter, "--device", "cpu"]

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([*models, "--output", str(tmp_path / "made.safetensors"), *argv])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    run.models = target, drafter
    return run


def test_from_command_to_drafts(command, tmp_path):
    code, out, err = command("--draft_mode", "parallel", "--retention", "0", "--rank", "4", "--keep_first", "1")
    assert code == 0, err
    assert "serial layers" in out
    assert "corrected" in out
    file = tmp_path / "made.safetensors"
    assert f"written: {file}" in err
    corrections = load_corrections(file)
    assert f"schedule: {corrections.schedule}" in out
    assert {"text", "tokens", "ridge", "rank", "made", "versions"} <= corrections.provenance.keys()
    pair = load_pair(*command.models, device="cpu", draft=DraftConfig(check="static", corrections=str(file)))
    assert pair.mode == "parallel"
    assert pair.describe()["schedule"] == corrections.schedule
    assert pair.serial_layers().startswith("5 → ")
    config = DecodeConfig(max_new_tokens=24, eos_ids=())
    drafted = pair.generate("Hello there", config)
    assert drafted.ids == pair.generate("Hello there", config, method="target").ids
    assert 0 < drafted.stats.mean_skip < 5
    assert drafted.stats.accepted > 0
    other = load_pair(command.models[0], device="cpu")
    with pytest.raises(ValueError, match="were fitted for another drafter"):
        other.configure(DraftConfig(check="static", corrections=str(file)))
    with pytest.raises(ValueError, match=r"schedule = '0-4': must be '.*', as in .*made\.safetensors"):
        pair.configure(DraftConfig(check="static", corrections=str(file), schedule="0-4"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rank", "0"], "--rank: '0' must be an integer >= 1"),
        (["--ridge", "0"], "--ridge: '0' must be a number > 0"),
        (["--window", "40"], "window = 40: must be at most 5, the drafter's number of layers"),
        (["--retention", "2"], "--retention: 2.0 must be a finite number >= 0 and <= 1"),
        (["--calibration_text", "/no/such.txt"], "calibration_text = '/no/such.txt': cannot be read"),
        (["--threshold", "0.5"], "unknown flag --threshold"),
    ],
)
def test_mistakes_are_one_line(command, argv, message):
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(errors) == 1, err
    assert message in errors[0]


def test_a_drafter_without_sublayers_is_refused(tiny_folder, capsys, tmp_path):
    model = str(tiny_folder("qwen3_moe"))
    code = main(["--target_model", model, "--device", "cpu", "--output", str(tmp_path / "m.safetensors")])
    assert code == 2
    assert "must be a drafter whose layers pdevis runs itself" in capsys.readouterr().err


def test_an_existing_file_is_kept(command, tmp_path):
    (tmp_path / "made.safetensors").write_text("mine")
    code, _, err = command()
    assert code == 2
    assert "already exists: --overwrite replaces it" in err
    assert (tmp_path / "made.safetensors").read_text() == "mine"


def test_ctrl_c_writes_nothing(command, tmp_path, monkeypatch):
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_run, "fit_corrections", interrupt)
    code, _, err = command("--draft_mode", "parallel", "--keep_first", "1")
    assert code == 130
    assert "has not been written" in err
    assert not (tmp_path / "made.safetensors").exists()


def test_a_static_schedule_is_chosen_at_load_and_shown(command):
    lines: list[str] = []
    draft = DraftConfig(check="static", retention=0.5, keep_first=1)
    pair = load_pair(*command.models, device="cpu", draft=draft, on_progress=lines.append)
    assert any(line.startswith("choosing a static schedule on ") for line in lines)
    described = pair.describe()
    assert described["check"] == "static"
    assert described["schedule"]
    config = DecodeConfig(max_new_tokens=20, eos_ids=())
    made = pair.generate("One two three", config)
    assert made.ids == pair.generate("One two three", config, method="target").ids
    lines.clear()
    again = load_pair(*command.models, device="cpu", draft=draft, on_progress=lines.append)
    assert again.describe() == described
    assert not any("choosing" in line for line in lines)
