"""The evaluate scripts from flags to files, on tiny models: results, mistakes, failures."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.evaluation import ROOT, SLOW_PAIR, Scripts, load, script_of, timeless
from helpers.tiny_models import CHAT_TEMPLATE, make_tokenizer
from pdevis.benchmarks.runs.result_files import method_keys, read_meta, read_results
from pdevis.benchmarks.tasks import BENCHMARKS


@pytest.fixture
def scripts(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scripts:
    monkeypatch.chdir(tmp_path)
    context = {"max_position_embeddings": 4096}
    return Scripts(tiny_folder("llama", 0, 3, **context), tiny_folder("llama", 1, 3, **context), capsys)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_benchmark_runs_on_its_samples(scripts: Scripts, benchmark: str) -> None:
    names = ("--max-examples", "--max_gen_len") if benchmark == "specbench" else ("--k", "--gen-len")
    code, err = scripts(benchmark, names[0], 2, names[1], 6, "--no-progress", "--gamma", 2)
    assert code == 0, err
    output = Path("results") / f"{benchmark}.{'jsonl' if benchmark == 'specbench' else 'json'}"
    assert err.splitlines()[-1] == f"{output}: 2 items"
    assert "greedy check: 2 of 2 speculative answers equal the target's" in err
    entries = read_results(output, benchmark)
    assert len(entries) == 2
    for entry in entries:
        blocks = [entry[key] for key in method_keys(benchmark).values()]
        assert all(block["tokens_generated"] > 0 and block["seconds"] > 0 for block in blocks)
        assert blocks[0]["token_ids"] == blocks[2]["token_ids"]
        assert sum(blocks[2]["accept_lengths"]) == blocks[2]["tokens_generated"]
    meta = read_meta(output)
    assert meta is not None
    assert (meta["benchmark"], meta["units"], meta["failed"]) == (benchmark, 2, 0)
    assert meta["equality"] == {"equal": 2, "near_tie": 0, "different": 0}
    assert meta["settings"]["gamma"] == 2
    assert meta["settings"]["methods"] == ["target", "drafter", "speculative"]
    assert meta["pair"]["target_device"] == "cpu"
    assert set(meta["versions"]) == {"python", "pdevis", "torch", "transformers"}
    assert meta["started"] <= meta["ended"]
    assert [path.name for path in Path("results").iterdir() if "partial" in path.name] == []


def test_specbench_keeps_a_conversation(scripts: Scripts) -> None:
    code, _ = scripts("specbench", "--max-gen-len", 3, "--max-examples", 40, "--methods", "target", "--out", "o.jsonl")
    assert code == 0
    long = [entry["target"]["turns"] for entry in load(Path("o.jsonl")) if len(entry["target"]["turns"]) > 1]
    assert long
    assert all(turns[1]["prompt_tokens"] > turns[0]["prompt_tokens"] + 3 for turns in long)


def test_sampled_runs_repeat_with_a_seed_and_note_the_one_they_drew(scripts: Scripts) -> None:
    flags = ("--k", 2, "--gen_len", 8, "--temperature", 1, "--no-progress")
    for name, seed in (("a", 3), ("b", 3), ("c", 4), ("d", None)):
        assert scripts("mmlu", *flags, "--output", f"{name}.json", *(["--seed", seed] if seed else []))[0] == 0
    a, b, c = (timeless(load(Path(f"{name}.json"))) for name in "abc")
    assert a == b
    assert a != c
    assert "same_as_target" not in a[0]["speculative"]
    drawn = read_meta(Path("d.json"))["settings"]["seed"]
    assert isinstance(drawn, int)
    assert scripts("mmlu", *flags, "--output", "e.json", "--seed", drawn)[0] == 0
    assert timeless(load(Path("e.json"))) == timeless(load(Path("d.json")))


def test_no_chat_changes_the_prompts(scripts: Scripts) -> None:
    for name, flags in (("chat", []), ("plain", ["--no-chat"])):
        argv = ("--k", 1, "--gen_len", 2, "--methods", "target", "--output", f"{name}.json", *flags)
        assert scripts("wmt", *argv)[0] == 0
    chat, plain = (load(Path(f"{name}.json"))[0]["target_only"]["prompt_tokens"] for name in ("chat", "plain"))
    assert chat > plain


def test_a_thought_that_the_prompt_opens_is_no_answer(scripts: Scripts, tmp_path: Path) -> None:
    processor = shutil.copytree(scripts.models[3], tmp_path / "thinking")
    make_tokenizer(chat_template=CHAT_TEMPLATE + "<think>\n").save_pretrained(processor)
    for name, flags in (("thinking", ["--processor", processor]), ("plain", [])):
        code, err = scripts("mmlu", "--k", 2, "--gen_len", 4, "--output", f"{name}.json", "--no-progress", *flags)
        assert code == 0
        note = "2 of 2 answers end inside a thought and count as no answer: give a larger --gen_len, or --thinking off"
        assert all((f"{method}: {note}" in err) == (name == "thinking") for method in ("target", "speculative"))
    blocks = [entry["target_only"] for name in ("thinking", "plain") for entry in load(Path(f"{name}.json"))]
    assert [block.get("prompt_opens_thought") for block in blocks] == ["<think>", "<think>", None, None]
    assert not any(block["output_text"].startswith("<think>") for block in blocks)  # the text of the model alone


def test_the_processor_is_another_models_tokenizer(scripts: Scripts, tmp_path: Path) -> None:
    argv = ("--max-examples", 1, "--max-gen-len", 2, "--methods", "target", "--no-progress")
    other = scripts.models[3]
    assert scripts("specbench", *argv, "--processor", other)[0] == 0
    code, err = scripts("specbench", *argv, "--processor", str(tmp_path), "--out", "x.jsonl")
    assert code == 2
    assert "has no config.json" in err.splitlines()[-1]


def test_items_that_fail_are_recorded_and_the_exit_code_says_so(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL_AT", "5")  # three warm-ups, the first item's target, and its drafter
    code, err = scripts("mmlu", "--k", 3, "--gen_len", 2, "--code-path", SLOW_PAIR, "--output", "o.json")
    assert code == 1
    assert "1 of 3 failed, first: RuntimeError: no memory left" in err
    first, second, third = load(Path("o.json"))
    assert first["error"] == "RuntimeError: no memory left"
    assert "label" in first
    assert "target_only" not in first
    assert "error" not in second | third
    assert read_meta(Path("o.json"))["failed"] == 1
    code, err = scripts("mmlu", "--k", 3, "--gen_len", 2, "--code-path", SLOW_PAIR, "--output", "o.json", "--resume")
    assert (code, err) == (1, "o.json is complete: 3 items, 1 failed\n")


CODE = {"empty.py": "", "broken.py": "def", "raises.py": "raise RuntimeError('a\\nb')", "leaves.py": "exit(0)"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dataset", "none.json"], "--dataset none.json: does not exist"),
        (["--dataset", "."], "--dataset .: is a folder"),
        (["--dataset", "empty.py"], "empty.py: "),
        (["--code_path", "none.py"], "--code_path none.py: does not exist"),
        (["--code_path", "."], "--code_path .: is a folder"),
        (["--code_path", "empty.py"], "--code_path empty.py: has no function load_pair"),
        (["--code-path", "broken.py"], "--code_path broken.py: cannot be run: SyntaxError"),
        (["--code_path", "raises.py"], "--code_path raises.py: cannot be run: RuntimeError: a b"),
        (["--code_path", "leaves.py"], "--code_path leaves.py: cannot be run: SystemExit"),
        (["--output", "empty.py/o.json"], "--output empty.py/o.json: empty.py is a file, not a folder"),
        (["--output", "."], "--output .: is a folder"),
        (["--output", "empty.py"], "--output empty.py: already exists: --overwrite"),
        (["--output", "empty.py", "--overwrite", "--code_path", "empty.py"], "would be overwritten"),
        (["--methods", "target,fast"], "--methods: 'fast' must be among target, drafter, speculative"),
        (["--methods", "target,target"], "--methods: 'target,target' names target twice"),
        (["--methods", ""], "--methods: '' must be among"),
        (["--k", "0"], "--k: '0' must be an integer >= 1"),
        (["--k", "x"], "--k: 'x' must be"),
        (["--gama", "2"], "unknown flag --gama; did you mean --gamma?"),
        (["--resume", "--overwrite"], "--overwrite: not allowed with argument --resume"),
        (["--draft_mode", "skip", "--no-calibrate"], "check = 'planned' with calibrate = False"),
        (["--target_model", "nowhere/model"], "nowhere/model"),
    ],
)
def test_mistakes_are_one_line(scripts: Scripts, argv: list[str], expected: str) -> None:
    for name, text in CODE.items():
        Path(name).write_text(text)
    code, err = scripts("mmlu", "--no-progress", *argv)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert expected in err
    assert [path.name for path in Path().rglob("*.partial.jsonl")] == []


def test_the_default_folder_cannot_be_created(scripts: Scripts) -> None:
    Path("results").write_text("a file")
    code, err = scripts("mmlu")
    assert code == 1
    assert err.startswith("error: the folder results cannot be created: File exists; name another file")


def test_a_missing_output_folder_is_created_and_reported(scripts: Scripts) -> None:
    output = Path("new") / "folder" / "o.json"
    code, err = scripts("mmlu", "--k", 1, "--gen_len", 1, "--methods", "target", "--no-progress", "--output", output)
    assert code == 0
    assert err.splitlines()[0] == f"created the folder {output.parent}"
    assert output.is_file()


USUAL = {
    **dict.fromkeys(("--draft_device", "--target_device", "--dataset", "--code_path", "--output"), "x"),
    **dict.fromkeys(("--target_model", "--drafter_model"), "x"),
    **dict.fromkeys(("--k", "--gen_len", "--gamma"), "3"),
}
SPEC = {
    **dict.fromkeys(("--code-path", "--specbench", "--out", "--drafter-device", "--target-device", "--processor"), "x"),
    **dict.fromkeys(("--target-model", "--drafter-model"), "x"),
    **dict.fromkeys(("--gamma", "--max-gen-len", "--max-examples", "--seed"), "3"),
}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_help_and_promised_flags_in_both_spellings(benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = SPEC if benchmark == "specbench" else USUAL
    parser = runpy.run_path(str(script_of(benchmark)))["build_parser"]()
    for joint in "_-":
        words = [word for flag, value in flags.items() for word in ("--" + flag[2:].replace("-", joint), value)]
        words = [word.replace("_", joint) if word.startswith("--") else word for word in words]
        args = parser.parse_args([*words, "--resume", "--no-progress", "--methods", "drafter,target"])
        assert (args.k, args.gamma, args.max_new_tokens, args.methods) == (3, 3, 3, ("drafter", "target"))
        paths = (args.dataset, args.output, args.code_path)
        models = (args.target_model, args.drafter_model, args.target_device, args.draft_device)
        assert {str(value) for value in (*paths, *models)} == {"x"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert f"evaluation/{benchmark}/evaluate_{benchmark}.py" in text
    assert all(flag.replace("-", "_")[2:] in text.replace("-", "_") for flag in (*flags, "--methods", "--draft_mode"))


def test_the_default_dataset_is_the_projects_sample(scripts: Scripts) -> None:
    assert scripts("mmlu", "--k", 1, "--gen_len", 1, "--methods", "target", "--output", "o.json")[0] == 0
    assert read_meta(Path("o.json"))["dataset"] == str(ROOT / "Data" / "samples" / "mmlu.json")
    assert json.loads(Path("o.json").read_text())[0]["target_only"]["tokens_generated"] == 1
