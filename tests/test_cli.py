"""The shared flags: spellings, mistakes, and their conversion to settings."""

from __future__ import annotations

import pytest

from pdevis.cli import (
    Parser,
    add_draft_flags,
    add_model_flags,
    draft_config,
    pair_arguments,
    run_main,
)
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.controls.decode_flags import add_decode_flags, decode_config


def make_parser(**devices: str) -> Parser:
    parser = Parser(prog="script")
    add_model_flags(parser, **devices)
    add_draft_flags(parser)
    add_decode_flags(parser)
    return parser


def error_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the line on stderr of a command line that must be refused."""
    with pytest.raises(SystemExit) as leaving:
        make_parser().parse_args(argv)
    streams = capsys.readouterr()
    assert leaving.value.code == 2
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert streams.err.startswith("error: ")
    return streams.err.strip()


def test_defaults_are_the_dataclasses_defaults() -> None:
    args = make_parser().parse_args([])
    assert draft_config(args) == DraftConfig()
    assert decode_config(args) == DecodeConfig()
    arguments = pair_arguments(args)
    assert (arguments["target"], arguments["drafter"]) == ("smollm2-135m", "self")
    assert set(arguments) == {
        *("target", "drafter", "device", "target_device", "draft_device"),
        *("target_precision", "draft_precision", "draft"),
    }


def test_a_target_alone_drafts_for_itself() -> None:
    arguments = pair_arguments(make_parser().parse_args(["--target_model", "qwen-8b"]))
    assert (arguments["target"], arguments["drafter"]) == ("qwen-8b", "self")


FLAGS = {
    "--target_model": "a",
    "--drafter_model": "b",
    "--device": "cpu",
    "--target_device": "cuda:1",
    "--draft_device": "cuda:0",
    "--target_precision": "float32",
    "--draft_precision": "int8",
    "--draft_vocab": "32",
    "--draft_mode": "skip",
    "--threshold": "0.5",
    "--window": "3",
    "--attention_window": "4",
    "--mlp_window": "2",
    "--check": "inline",
    "--keep_first": "1",
    "--keep_last": "0",
    "--gamma": "7",
    "--length": "9",
    "--temperature": "0.7",
    "--top_k": "5",
    "--top_p": "0.9",
    "--seed": "11",
}


@pytest.mark.parametrize("dashes", [False, True])
@pytest.mark.parametrize("equals", [False, True])
def test_every_flag_in_both_spellings_reaches_its_setting(dashes: bool, equals: bool) -> None:
    argv = ["--no-calibrate", "--compile"]
    for flag, value in FLAGS.items():
        flag = flag.replace("_", "-") if dashes else flag
        argv += [f"{flag}={value}"] if equals else [flag, value]
    args = make_parser().parse_args(argv)
    assert pair_arguments(args) == {
        "target": "a",
        "drafter": "b",
        "device": "cpu",
        "target_device": "cuda:1",
        "draft_device": "cuda:0",
        "target_precision": "float32",
        "draft_precision": "int8",
        "draft_vocab": 32,
        "graphs": "on",
        "draft": DraftConfig("skip", 0.5, "inline", 3, 4, 2, 1, 0, calibrate=False),
    }
    assert decode_config(args, reuse_prefix=True) == DecodeConfig(9, 7, 0.7, 5, 0.9, 11, reuse_prefix=True)


def test_no_calibrate_in_both_spellings_and_values_with_dashes() -> None:
    for flag in ("--no-calibrate", "--no_calibrate"):
        assert make_parser().parse_args([flag]).calibrate is False
    assert make_parser().parse_args(["--target-model", "my-model_x"]).target_model == "my-model_x"
    assert make_parser().parse_args(["--target-model=--draft-mode"]).target_model == "--draft-mode"


def test_device_flags_are_named_by_the_script() -> None:
    parser = make_parser(target_device="--device_target", draft_device="--device_drafter")
    arguments = pair_arguments(parser.parse_args(["--device-target", "cuda:1", "--device_drafter", "cuda:0"]))
    assert (arguments["target_device"], arguments["draft_device"]) == ("cuda:1", "cuda:0")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--gamma", "0"], ["--gamma", "0", ">= 1"]),
        (["--gamma", "two"], ["--gamma", "'two'", "integer >= 1"]),
        (["--gamma", "2.5"], ["--gamma", "'2.5'", "an integer"]),
        (["--gamma"], ["--gamma", "expected one argument"]),
        (["--threshold", "x"], ["--threshold", "'x'", "finite number"]),
        (["--threshold", "nan"], ["--threshold", "nan", "finite number"]),
        (["--window", "0"], ["--window", "0", ">= 1"]),
        (["--mlp-window", "0"], ["--mlp_window", "0", ">= 1"]),
        (["--temperature", "-1"], ["--temperature", "-1.0", ">= 0"]),
        (["--top_p", "0"], ["--top_p", "0", ">= 1e-06"]),
        (["--top_k", "-1"], ["--top_k", "-1", ">= 0"]),
        (["--length", "-1"], ["--length", "-1", ">= 0"]),
        (["--seed", "-4"], ["--seed", "-4", ">= 0"]),
        (["--draft_mode", "fast"], ["--draft_mode", "'fast'", "auto, exact, skip, parallel"]),
        (["--check", "never"], ["--check", "'never'", "inline, planned"]),
        (["--gama", "4"], ["unknown flag --gama", "did you mean --gamma?"]),
        (["--draft-mod=skip"], ["unknown flag --draft-mod", "did you mean --draft_mode?"]),
        (["--temp", "1"], ["unknown flag --temp"]),
        (["--qqqq"], ["unknown flag --qqqq", "--help"]),
        (["hello"], ["unexpected 'hello'"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], argv: list[str], parts: list[str]
) -> None:
    text = error_line(capsys, *argv)
    for part in parts:
        assert part in text


def test_settings_that_exclude_each_other() -> None:
    args = make_parser().parse_args(["--draft_mode", "skip", "--no-calibrate"])
    with pytest.raises(ValueError, match=r"planned.*inline"):
        draft_config(args)


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        make_parser().parse_args(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for flag in (*FLAGS, "--no-calibrate"):
        assert flag in text


def test_run_main_maps_outcomes_to_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        raise error

    assert run_main(lambda: None) == 0
    assert run_main(lambda code: code, 3) == 3
    assert run_main(fail, KeyboardInterrupt()) == 130
    assert run_main(fail, BrokenPipeError()) == 1
    assert capsys.readouterr().err == ""
    assert run_main(fail, ValueError("two\n  lines")) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert run_main(fail, OSError(28, "No space left on device", "out.json")) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'out.json'\n"
    with pytest.raises(ZeroDivisionError):
        run_main(fail, ZeroDivisionError())
