"""Files, flags and token ids of an earlier version: this one reads the files alike and produces the same figures.

Commit 439ef91 wrote `old_files/` on a CPU with AVX2, with the embedded model: results with their meta files and
summaries, a trace and its simulations, a profile, the partial file of a run that was interrupted after one of three
items, the flags that `--help` lists, and greedy token ids. `pair_code.py` is the --code_path of these runs.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import ROOT
from helpers.evaluation import load
from pdevis.benchmarks.runs.journal import read_journals
from pdevis.benchmarks.runs.result_files import read_meta
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.pair import load_pair
from pdevis.profile import read_profile
from pdevis.simulate.trace_reader import read_trace
from pdevis.util.provenance import versions

OLD = Path(__file__).parent / "old_files"
FLAGS: dict[str, list[str]] = json.loads((OLD / "flags.json").read_text())
SUMMARIES = [
    ("mmlu", "mmlu.json", "mmlu_summary.json"),
    ("mmlu", "stopped.json.partial.jsonl", "stopped_summary.json"),
    ("wmt", "wmt.json", "wmt_summary.json"),
    ("specbench", "specbench.jsonl", "specbench_summary.json"),
    ("ablation", "ablation.json", "ablation_summary.json"),
    ("speed", "speed.json", "speed_summary.json"),
    ("speed", "speed_devices.json", "speed_devices_summary.json"),
]
ADDED_KEYS = ("answers", "unfinished_thoughts")  # of summaries, since then
ADDED_TO_SIGNATURES = "tokenizer:unicode|"  # ROUGE's, which has the same words of texts in ASCII
RULES = {"skip": DraftConfig(mode="skip", threshold=0.97), "default": DraftConfig()}


@pytest.fixture
def old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files in `out/`, the folder in which they were written, relative to the current one."""
    shutil.copytree(OLD, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    return Path("out")


def load_json(path: Path | str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def namespace(command: str) -> dict[str, Any]:
    """Definitions of a script, given by its path, or of a module, given as `-m NAME`."""
    path = command
    if command.startswith("-m "):
        path = command.removeprefix("-m ").replace(".", "/")
        path += "/__main__.py" if (ROOT / path).is_dir() else ".py"
    return runpy.run_path(str(ROOT / path))


def assert_same(new: Any, old: Any, where: str = "") -> None:
    """Compare two JSON values: the same keys, texts and counts, and numbers that are equal but for float rounding."""
    if isinstance(old, dict):
        assert isinstance(new, dict), where
        assert [key for key in new if key not in ADDED_KEYS] == list(old), where
        for key in old:
            assert_same(new[key], old[key], f"{where}/{key}")
    elif isinstance(old, list):
        assert len(new) == len(old), where
        for i, (new_item, old_item) in enumerate(zip(new, old)):
            assert_same(new_item, old_item, f"{where}/{i}")
    elif isinstance(old, float):
        assert new == pytest.approx(old, rel=1e-9, abs=1e-12), where
    else:
        if isinstance(new, str):
            new = new.replace(ADDED_TO_SIGNATURES, "")
        assert new == old, where
        assert type(new) is type(old), where


@pytest.mark.parametrize(("benchmark", "results", "summary"), SUMMARIES, ids=[results for _, results, _ in SUMMARIES])
def test_summaries_have_the_same_figures(old_files: Path, benchmark: str, results: str, summary: str) -> None:
    main = namespace(f"summary/{benchmark}/summary_{benchmark}.py")["main"]
    assert main(["--input", str(old_files / results), "--output", "new.json"]) == 0
    assert_same(load_json("new.json"), load_json(old_files / summary))


def test_answers_in_the_format_of_spec_bench_are_the_same(old_files: Path) -> None:
    main = namespace("summary/specbench/summary_specbench.py")["main"]
    argv = ["--input", str(old_files / "specbench.jsonl"), "--output", "new.json", "--spec-bench-answers", "new.jsonl"]
    assert main(argv) == 0
    for new, old in (("new.jsonl", "answers.jsonl"), ("new-baseline.jsonl", "answers-baseline.jsonl")):
        for new_answer, old_answer in zip(load(Path(new)), load(old_files / old), strict=True):
            chance = {"answer_id": None, "tstamp": None}
            assert_same(new_answer | chance, old_answer | chance)


def test_meta_files_are_read() -> None:
    for path, units in (("mmlu.json", 3), ("specbench.jsonl", 2), ("ablation.json", 8), ("speed.json", 4)):
        meta = read_meta(OLD / path)
        assert meta["settings"]["target_model"] == "smollm2-135m"
        assert (meta["units"], meta["failed"], meta["pair"]["draft_precision"]) == (units, 0, "int8")


def test_trace_is_simulated_to_the_same_figures(old_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = namespace("-m pdevis.simulate")["main"]
    trace = str(old_files / "trace.jsonl")
    rounds = list(read_trace(trace).rounds)
    assert sum(traced.accepted + 1 for traced in rounds) >= 16
    runs = {
        "simulate.json": ["--thresholds", "0.9,0.97", "--devices", "1,2", "--link_us", "10"],
        "simulate_profile.json": ["--profile", str(old_files / "profile.json"), "--mode", "skip", "--devices", "1"],
    }
    for expected, flags in runs.items():
        assert main(["--trace", trace, *flags, "--json"]) == 0
        simulated, old = json.loads(capsys.readouterr().out), load_json(old_files / expected)
        sentences = {"assumptions": [None] * len(old["assumptions"])}  # their wording may change
        assert len(simulated["assumptions"]) == len(old["assumptions"])
        assert_same(simulated | sentences, old | sentences)


def test_profile_gives_its_settings_to_the_flags() -> None:
    content = load_json(OLD / "profile.json")
    profile = read_profile(OLD / "profile.json")
    assert profile.draft == DraftConfig(**content["settings"]["draft"])
    assert profile.costs.verify_seconds[1] == content["costs"]["verify_seconds"]["1"]
    args = namespace("appInference.py")["build_parser"]().parse_args(["--profile", str(OLD / "profile.json")])
    assert (args.draft_mode, args.gamma, args.target_model) == ("exact", "auto", "smollm2-135m")


def listed_flags(text: str) -> list[str]:
    """Flags that a --help text lists, all spellings of each."""
    found: set[str] = set()
    for line in text.splitlines():
        match = re.match(r"  (-\S.*)$", line)
        if match:
            found.update(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", re.split(r"\s{2,}", match[1])[0]))
    return sorted(found)


@pytest.mark.parametrize("command", [name for name in FLAGS if not name.startswith("-m pdevis.l")])
def test_help_lists_the_same_flags(command: str) -> None:
    """Flags only get added."""
    listed = listed_flags(namespace(command)["build_parser"]().format_help())
    assert [flag for flag in listed if flag in FLAGS[command]] == FLAGS[command]


@pytest.mark.parametrize("command", ["", "run"])
def test_lm_eval_lists_the_same_flags(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of lm_eval itself, in the pinned version."""
    main = namespace("-m pdevis.lm_eval")["main"]
    monkeypatch.setattr(sys, "argv", sys.argv)  # the command replaces it
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert not stopped.value.code
    assert listed_flags(capsys.readouterr().out) == FLAGS[f"-m pdevis.lm_eval {command}".strip()]


@pytest.mark.slow
def test_interrupted_run_is_resumed(embedded_folder: Path, old_files: Path) -> None:
    """The partial file names versions of libraries: they are replaced by those of this environment."""
    partial = old_files / "stopped.json.partial.jsonl"
    header, *lines = partial.read_text(encoding="utf-8").splitlines()
    content = json.loads(header)
    content["header"]["versions"] = versions()
    partial.write_text("\n".join([json.dumps(content), *lines]) + "\n", encoding="utf-8")
    kept = read_journals([partial])[0].entries
    assert list(kept) == [0]
    main = namespace("evaluation/mmlu/evaluate_mmlu.py")["main"]
    output, inputs = old_files / "stopped.json", {"dataset": "mmlu_items.json", "code_path": "pair_code.py"}
    argv = [word for flag, name in inputs.items() for word in (f"--{flag}", str(old_files / name))]
    assert main([*argv, "--gen_len=12", "--gamma=3", "--no-progress", f"--output={output}", "--resume"]) == 0
    entries, uninterrupted = load_json(output), load_json(old_files / "mmlu.json")
    assert entries[0] == kept[0]
    assert not partial.exists()
    for entry, old in zip(entries, uninterrupted, strict=True):
        assert [list(entry), list(entry["speculative"])] == [list(old), list(old["speculative"])]
        assert entry["speculative"]["token_ids"] == entry["target_only"]["token_ids"]
        if entry["target_only"]["token_ids"] == old["target_only"]["token_ids"]:
            assert entry["speculative"]["output_text"] == old["speculative"]["output_text"]
    assert [bool(run["ended"]) for run in read_meta(output)["runs"]] == [False, True]


@pytest.mark.slow
def test_greedy_ids_are_the_same(embedded_folder: Path) -> None:
    """Greedy ids of the embedded pair: speculative ones are always the target's; both are compared with the old ones.

    The last bits of a product depend on the CPU's units. So if the target itself chooses other tokens than on the CPU
    of the old files, nothing follows about this version; and the drafter's choices, from which the counts follow, are
    compared only if its own greedy ids are the old ones, and roughly: its attention over several tokens rounds in
    another way than at that time, and a cosine near the threshold may fall on its other side.
    """
    old = load_json(OLD / "ids.json")
    pair = load_pair(old["target_model"], old["drafter_model"], device="cpu")
    config = DecodeConfig(max_new_tokens=old["max_new_tokens"], gamma=old["gamma"])
    compared = 0
    for answer in old["answers"]:
        ids = {method: pair.generate(answer["prompt"], config, method=method).ids for method in ("target", "drafter")}
        for name, rule in RULES.items():
            pair.configure(rule)
            generation = pair.generate(answer["prompt"], config)
            assert generation.ids == ids["target"], name
            if ids["target"] != answer["target"]:
                continue
            compared += 1
            assert generation.text == answer["text"]
            if ids["drafter"] == answer["drafter"]:
                counts = {key: np.sum(getattr(generation.stats, key)) for key in answer[name]}
                assert counts == pytest.approx({key: np.sum(value) for key, value in answer[name].items()}, rel=0.1)
    if not compared:
        pytest.skip("the target chooses other tokens on this CPU than on the one of the old files")
