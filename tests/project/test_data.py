"""Tests of Data/prepare.py with a fake model hub."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from helpers import ROOT
from pdevis.benchmarks.tasks import BENCHMARKS, get_task
from pdevis.benchmarks.tasks.mgsm import LANGUAGES


def load_prepare() -> Any:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "Data" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


prepare = load_prepare()


class FakeHub:
    """Fake of datasets.load_dataset, with tables in the format of the hub."""

    TABLES: ClassVar[dict[str, list[dict[str, Any]]]] = {
        "wmt/wmt14": [{"translation": {"de": f"Satz {i}.", "en": f"Sentence {i}."}} for i in range(6)],
        "cais/mmlu": [
            {"question": f"q{i}?", "choices": list("wxyz"), "answer": i % 4, "subject": f"s{i % 2}"} for i in range(6)
        ],
        "HuggingFaceH4/MATH-500": [
            {"problem": "p", "solution": "s", "answer": "1", "subject": "Algebra", "level": 2, "unique_id": f"t/{i}"}
            for i in range(3)
        ],
        "google/IFEval": [
            {
                "key": 1000 + i,
                "prompt": "p",
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "at least", "keywords": None}],
            }
            for i in range(3)
        ],
        "csv": [{"question": "How many?", "answer": "1,200"}, {"question": "And now?", "answer": "7"}],
    }

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(self, path: str, **options: Any) -> list[dict[str, Any]]:
        self.calls.append((path, options))
        return self.TABLES[path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    import datasets

    fake = FakeHub()
    questions = tmp_path / "question.jsonl"
    lines = [{"question_id": i, "category": "rag", "turns": ["t"], "reference": [["a"], "b"]} for i in (81, 82)]
    questions.write_text("\n".join(map(json.dumps, lines)) + "\n")
    monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, url: str(questions))
    monkeypatch.setattr(prepare, "ping", lambda dataset: None)
    return fake


def test_prepare_all_writes_files_that_load(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "folder"
    assert prepare.main(["all", "--output-dir", str(out)]) == 0
    files = {name: out / source.file for name, source in prepare.SOURCES.items()}
    assert set(files) == set(BENCHMARKS)
    assert sorted(out.iterdir()) == sorted(files.values())
    counts = {name: len(get_task(name).load(file)) for name, file in files.items()}
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"{file}: {counts[name]} items" for name, file in files.items())
    assert counts["mgsm"] == 2 * len(LANGUAGES)
    for path, options in hub.calls:
        pins = [source.revision for source in prepare.SOURCES.values()]
        assert options.get("revision") in pins or any(pin in options["data_files"]["test"] for pin in pins), path
    wmt = get_task("wmt").load(out / "wmt.json")
    assert {item["prompt"][0]: item["label"] for item in wmt}["Translate German to English: Satz 3."] == ["Sentence 3."]
    assert {item["target_language"] for item in wmt} == {"en"}
    mgsm = get_task("mgsm").load(out / "mgsm.json")
    assert {item["label"] for item in mgsm} == {1200, 7}
    assert len({item["language"] for item in mgsm[:11]}) == 11
    assert [item["subject"] for item in get_task("mmlu").load(out / "mmlu.json")] == ["s0", "s1"] * 3
    assert get_task("ifeval").load(out / "ifeval.json")[0]["kwargs"] == [{"num_words": 3, "relation": "at least"}]


def test_prepare_shuffles_with_the_seed(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def drawn(*arguments: str) -> list[int]:
        assert prepare.main(["wmt", "--force", "--output-dir", str(tmp_path), *arguments]) == 0
        return [item["question_id"] for item in get_task("wmt").load(tmp_path / "wmt.json")]

    assert drawn("--seed", "1") == drawn("--seed", "1") != drawn("--seed", "2")
    assert drawn("--seed", "1", "--k", "2") == drawn("--seed", "1")[:2]
    assert len(drawn("--k", "9")) == 6
    assert "--k is 9" in capsys.readouterr().out
    assert drawn("--revision", "abc123")
    assert hub.calls[-1][1]["revision"] == "abc123"


def test_prepare_overwrites_only_with_force(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mmlu.json").write_text("mine")
    assert prepare.main(["all", "--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'mmlu.json'}: already exists; --force overwrites it\n"
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".json"] == ["mmlu.json"]
    assert (tmp_path / "mmlu.json").read_text() == "mine"
    assert not hub.calls
    assert prepare.main(["mmlu", "--output_dir", str(tmp_path), "--force"]) == 0
    assert len(get_task("mmlu").load(tmp_path / "mmlu.json")) == 6


def test_prepare_writes_whole_files_only(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(
        hub.TABLES, "cais/mmlu", [{"question": "", "choices": list("wxyz"), "answer": 0, "subject": ""}]
    )
    assert prepare.main(["mmlu", "math", "--output-dir", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: mmlu: the dataset is not as expected: ")
    assert output.err.count("\n") == 1
    assert "math.json: 3 items" in output.out  # the others are written all the same
    assert {file.name for file in tmp_path.iterdir()} == {"math.json", "question.jsonl"}


def test_prepare_takes_wmt_from_sacrebleu_if_the_hub_is_unreachable(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import sacrebleu.utils

    asked = []

    def away(dataset: str) -> None:
        raise prepare.Unreachable(f"{dataset}: the hub cannot be reached")

    def part(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    monkeypatch.setattr(prepare, "ping", away)
    monkeypatch.setattr(
        sacrebleu.utils, "get_source_file", lambda *names: asked.append(names) or part("de", "Eins.\nZwei\x85 drei.\n")
    )
    monkeypatch.setattr(sacrebleu.utils, "get_reference_files", lambda *names: [part("en", "One.\nTwo three.\n")])
    assert prepare.main(["wmt", "--output-dir", str(tmp_path)]) == 0
    assert asked == [("wmt14/full", "de-en")]
    assert "taking sacrebleu's wmt14/full" in capsys.readouterr().err
    labels = {item["question_id"]: item["label"] for item in get_task("wmt").load(tmp_path / "wmt.json")}
    assert labels == {1: ["One."], 2: ["Two three."]}

    def stop(*names: str) -> str:
        raise SystemExit(1)

    monkeypatch.setattr(sacrebleu.utils, "get_source_file", stop)
    assert prepare.main(["wmt", "math", "--force", "--output-dir", str(tmp_path)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1] for line in errors] == [" wmt", " math"]
    assert len(get_task("wmt").load(tmp_path / "wmt.json")) == 2  # the old file is untouched


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gsm8k"], "invalid choice: 'gsm8k'"),
        ([], "required"),
        (["wmt", "--k", "0"], "'0' must be an integer >= 1"),
        (["wmt", "--seed", "x"], "'x' must be an integer >= 0"),
        (["all", "--revision", "abc"], f"--revision abc: must come with one benchmark, not {len(BENCHMARKS)}"),
        (["wmt", "--outputdir", "x"], "unknown flag --outputdir"),
    ],
)
def test_prepare_mistakes_are_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture) -> None:
    try:
        code = prepare.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    output = capsys.readouterr().err
    assert expected in output
    assert output.count("\n") == 1


def test_prepare_help_names_flags_and_benchmarks(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        prepare.main(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert all(word in output for word in ("--k", "--seed", "--output_dir", "--revision", "--force", *BENCHMARKS))


def test_the_readme_names_every_source() -> None:
    text = (ROOT / "Data" / "README.md").read_text()
    for name, source in prepare.SOURCES.items():
        assert source.revision in text
        assert source.file == f"{name}.json" or source.file in text
