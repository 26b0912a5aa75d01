"""Text of any file or stream that comes in, text that goes out in any encoding, and checks of output files."""

from __future__ import annotations

import argparse
import ast
import codecs
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.recordings import make_profile, save
from pdevis.benchmarks.runs.journal import read_journals, read_result
from pdevis.benchmarks.runs.result_files import read_meta, read_results
from pdevis.benchmarks.tasks import get_task
from pdevis.chat.oneshot import read_prompt
from pdevis.chat.terminal import line_reader, make_history
from pdevis.loading.checkpoint import find_source, read_config
from pdevis.profile import read_profile
from pdevis.simulate.trace_reader import read_trace
from pdevis.util.files import (
    decode_text,
    encode_json,
    parse_json,
)

OLD_FILES = ROOT / "tests" / "project" / "old_files"
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C locale": {"LC_ALL": "C", "LANG": "C"},
    "C locale, ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "appInference.py", ROOT / "Data" / "prepare.py", *ROOT.glob("evaluation/*/*.py")]
)


def read_prompt_file(path: Path) -> str | None:
    return read_prompt(argparse.Namespace(prompt=None, prompt_file=str(path), json=False))


def read_own_meta(path: Path) -> Any:
    return read_meta(path.with_name(path.name.removesuffix(".meta.json")))


def read_model_config(path: Path) -> Any:
    return vars(read_config(find_source(str(path.parent))))


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "data, array": (get_task("mmlu").load, "mmlu_items.json"),
    "data, lines": (get_task("specbench").load, "../../../Data/samples/specbench.jsonl"),
    "result, array": (read_results, "mmlu.json"),
    "result, lines": (read_results, "specbench.jsonl"),
    "result, ablation": (read_result, "ablation.json"),
    "meta": (read_own_meta, "mmlu.json.meta.json"),
    "partial": (lambda path: read_journals([path]), "stopped.json.partial.jsonl"),
    "profile": (read_profile, "profile.json"),
    "trace": (read_trace, "trace.jsonl"),
    "prompt": (read_prompt_file, "../../../LICENSE"),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_reader_reads_files_of_other_systems_alike(kind, mark, end, tmp_path):
    read, name = READERS[kind]
    original = OLD_FILES / name
    file = tmp_path / original.name
    shutil.copyfile(original, file)
    expected = read(file)
    file.write_bytes(mark + original.read_bytes().replace(b"\n", end))
    assert read(file) == expected


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.encode("utf-16"), "must be UTF-8 text, but is UTF-16: iconv -f UTF-16 -t UTF-8 converts it"),
        (lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"), "but is UTF-16"),
        (lambda text: text.encode("utf-32"), "but is UTF-32"),
        (lambda text: text.encode("utf-16-le"), "NUL at byte 1"),
        (lambda text: b"{\xff" + text.encode(), "invalid start byte at byte 1"),
        (lambda text: text.encode()[:9] + b"\xe9 " + text.encode()[9:], "invalid continuation byte at byte 9"),
    ],
)
def test_every_reader_names_file_and_byte_of_what_is_not_text(kind, damage, words, tmp_path):
    read, name = READERS[kind]
    original = OLD_FILES / name
    file = tmp_path / original.name
    file.write_bytes(damage(original.read_text(encoding="utf-8")))
    with pytest.raises(ValueError) as caught:
        read(file)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert kind == "result, ablation" or f"{file}: must be UTF-8" in message  # whose caller adds the name


def test_profile_is_read_as_it_was_written_with_a_name_that_is_not_text(tmp_path):
    profile = make_profile(target="model \udcff")
    assert read_profile(save(profile, tmp_path / "tuned.json")) == profile


def test_config_of_a_model_may_have_a_mark(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    expected = read_model_config(folder / "config.json")
    (folder / "config.json").write_bytes(codecs.BOM_UTF8 + (folder / "config.json").read_bytes())
    assert read_model_config(folder / "config.json") == expected


def test_lines_of_standard_input_in_any_locale():
    data = codecs.BOM_UTF8 + "Grüße\r\n你好\none\rtwo\n".encode() + b"\n\xff\n"
    read = line_reader(io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert [read() for _ in range(5)] == ["Grüße", "你好", "one", "two", ""]
    with pytest.raises(ValueError, match=f"standard input: must be UTF-8 text: .* at byte {len(data) - 2}"):
        read()
    with pytest.raises(EOFError):
        read()


def test_typed_bytes_that_are_not_text_do_not_end_the_chat(tmp_path):
    make_history(tmp_path / "history").append_string("Grüße \udcff")
    assert "Grüße ?" in (tmp_path / "history").read_text(encoding="utf-8")
    assert make_history(None).get_strings() == []


@pytest.mark.parametrize("lone", ["\r", "\r\n"])
def test_line_ends_inside_a_prompt_become_line_feeds(lone, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(f"a{lone}{lone}b{lone}".encode())
    assert read_prompt_file(tmp_path / "prompt.txt") == "a\n\nb"


def test_mark_inside_a_text_stays():
    assert decode_text("a\ufeffb".encode(), "file") == "a\ufeffb"
    assert decode_text(codecs.BOM_UTF8 + "\ufeffb".encode(), "file") == "\ufeffb"


def test_json_without_end_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("text", ["Grüße 你好 🙂", "half \ud83d", "a byte \udcff", "\u2028"])
def test_files_are_utf_8_and_read_back(text):
    data = encode_json({"text": text}, indent=1)
    assert json.loads(data.decode("utf-8")) == {"text": text}


def test_no_other_function_decodes_text():
    """Text files are read through `read_text` and `decode_text`; those that are written are UTF-8."""
    allowed = {"pdevis/util/files.py", "pdevis/benchmarks/peak_memory.py"}  # a pipe between two of our processes
    system_files = ("L3_SIZE_FILE", "Path('/proc/cpuinfo')")
    for path in [*(ROOT / "pdevis").rglob("*.py"), ROOT / "Data" / "prepare.py"]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.relative_to(ROOT).as_posix() in allowed or not isinstance(call, ast.Call):
                continue
            name, text = ast.unparse(call.func), ast.unparse(call)
            if name.endswith((".read_text", "stdin.read", "stdin.readline")):
                assert name.removesuffix(".read_text") in system_files, f"{path}: {text}"
            opens = name.endswith("open") and ("'w'" in text or "'x'" in text)
            if opens or name.endswith(".write_text"):
                assert "encoding='utf-8'" in text, f"{path}: {text}"
            assert name != "json.loads", f"{path}: {text}: parse_json"
            assert name != "json.dumps" or "ensure_ascii" not in text, f"{path}: {text}: encode_json or print_json"


# ---- scripts in other encodings ----


def run(command: list[str], environment: dict[str, str], data: bytes = b"") -> tuple[int, bytes, str]:
    """Run a script of this repository; it must not end with a traceback."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHONIO", "LANG"))}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, *command], input=data, env=variables, cwd=ROOT, capture_output=True)
    errors = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors
    return done.returncode, done.stdout, errors


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> list[str]:
    return ["--target_model", str(tiny_folder("llama")), "--length", "12", "--temperature", "2", "--seed", "1"]


@pytest.mark.parametrize(
    "encoding",
    ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ENCODINGS if name != "ascii")],
)
def test_chat_and_answers_in_any_encoding(encoding, model, tmp_path):
    lines = "Grüße 你好 🙂\n/settings\n/both on\nhé\n/stats\n/help\n/save {}\n".format(tmp_path / "chat.json")
    code, _, errors = run(["appInference.py", *model], ENCODINGS[encoding], lines.encode())
    assert code == 0, errors
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert [turn["user"] for turn in saved["turns"]] == ["Grüße 你好 🙂", "hé"]
    argv = ["appInference.py", *model, "--json", "--prompt"]
    ids = []
    for text, data in (("Grüße 🙂", b""), ("-", "Grüße 🙂".encode())):
        code, output, errors = run([*argv, text], ENCODINGS[encoding], data)
        assert code == 0, errors
        ids.append(json.loads(output.decode("ascii" if "ascii" in encoding else "cp1252"))["ids"])
    assert ids[0] == ids[1]


@pytest.mark.parametrize("encoding", ["ascii", "C locale, ascii"])
def test_evaluation_and_summary_in_any_encoding(encoding, model, tmp_path):
    result, summary = tmp_path / "mgsm.json", tmp_path / "summary.json"
    argv = ["evaluation/mgsm/evaluate_mgsm.py", *model[:2], "--k", "2", "--gen_len", "8", "--output", str(result)]
    code, _, errors = run(argv, ENCODINGS[encoding])
    assert code == 0, errors
    argv = ["summary/mgsm/summary_mgsm.py", "--input", str(result), "--output", str(summary)]
    code, output, errors = run(argv, ENCODINGS[encoding])
    assert code == 0, errors
    assert output.decode("ascii")
    assert json.loads(summary.read_text(encoding="utf-8"))["benchmark"] == "mgsm"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_in_ascii(script):
    code, output, _ = run([script, "--help"], ENCODINGS["ascii"])
    assert code == 0
    assert output.decode("ascii")


def test_mistake_in_ascii():
    code, output, errors = run(["appInference.py", "--no_such_flag", "é"], ENCODINGS["C locale, ascii"])
    assert (code, output) == (2, b"")
    assert errors.startswith("error: ")


@pytest.mark.parametrize(
    ("argument", "words"),
    [(b"caf\xe9", "--prompt: must be UTF-8 text: unexpected end of data at byte 3"), (b"\xff\xfea", "is UTF-16")],
)
def test_argument_that_is_not_utf_8(argument, words):
    command = [os.fsencode(sys.executable), b"appInference.py", b"--prompt", argument]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith("error: --prompt: must be UTF-8 text")
    assert words in done.stderr.decode()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed, model):
    command = f'"{sys.executable}" appInference.py "$@" {closed}'
    argv = ["sh", "-c", command, "sh", *model[:4], *(["--prompt", "hi"] if closed != "<&-" else [])]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
