"""The documentation: links, lengths of lines and pages, words, messages and names that must exist in the code."""

from __future__ import annotations

import ast
import re
import runpy
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from helpers import ROOT
from pdevis.benchmarks.tasks import BENCHMARKS
from pdevis.config import MODEL_FIELDS, DecodeConfig
from pdevis.controls.model_settings import NEUTRAL_SAMPLING, NEUTRAL_SETTINGS
from pdevis.loading.weights.families import FAMILIES

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Data/README.md", *PAGES)
HISTORY = ("CHANGELOG.md", "docs/lab-notebook.md")  # pages that tell what was before
MAX_PROSE = 130
MAX_LINES = {"README.md": 120, "docs/performance.md": 150}

# Sentences about an earlier state of the page or the code: a page says what is.
EARLIER = (
    r"used to|no longer|was before|were before|previously|formerly|has been (?:renamed|moved)|as of now|until recently"
)
# Words and phrases with a private meaning, or that a reader of another language's English stumbles over.
BANNED = (
    r"in turn|so many|stands? in for|a process of its own|weights of its own|sign of life|signs of life|lean forward|"
    r"kindly|peers?|seats?|mail|obeys?|settles?|judges?|told|figures|brings?|now and then|in mid-way|half a message|"
    r"beside|besides|behind|no matter whether|is there already|is not there"
)
OUTSIDE = r"\b(?:DESIGN|STYLE|REVIEW|MEASURED)(?:\.md)?\b|/tmp/|/work/|\bsession \d|\bissue \d|\bthe lead\b"

# Words that users read in results, and words of the method.
GLOSSARY_TERMS = (
    "drafter, target",
    "γ, gamma",
    "round",
    "confirmed tokens",
    "bonus token",
    "acceptance rate α",
    "accept length",
    "h_ℓ",
    "divergence δ_ℓ",
    "threshold τ",
    "lane, window W",
    "serial depth",
    "mean_skip",
    "draft speedup",
    "retention",
    "c",
    "static schedule",
    "wide layer",
    "correction",
    "p, q",
)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """The text with code blocks blanked, line by line."""
    kept, in_block = [], False
    for line in text.splitlines():
        fence = line.strip().startswith("```")
        in_block ^= fence
        kept.append("" if in_block or fence or line.startswith("    ") else line)
    return "\n".join(kept)


def prose(text: str) -> str:
    """The text without code blocks, code spans, tables and comments."""
    lines = ["" if line.strip().startswith("|") else line for line in without_code(text).splitlines()]
    return re.sub(r"<!--.*?-->|`[^`]*`", "", "\n".join(lines), flags=re.S)


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", without_code(text), re.M)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    text = without_code(read(document))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target} does not exist"
        if heading:
            assert heading in anchors(file.read_text(encoding="utf-8")), f"{document}: {target} has no such heading"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_prose_lines_are_short(document: str) -> None:
    lines = enumerate(without_code(read(document)).splitlines(), 1)
    long = [number for number, line in lines if len(line) > MAX_PROSE and not line.strip().startswith("|")]
    assert long == [], f"{document}: lines of more than {MAX_PROSE} characters"


@pytest.mark.parametrize("document", MAX_LINES)
def test_pages_are_short(document: str) -> None:
    assert len(read(document).splitlines()) <= MAX_LINES[document]


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document not in HISTORY])
def test_pages_say_what_is(document: str) -> None:
    assert re.findall(rf"\b(?:{EARLIER})\b", prose(read(document)), re.I) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_words_are_those_of_the_field(document: str) -> None:
    assert re.findall(rf"\b(?:{BANNED})\b", prose(read(document)), re.I) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_mention_of_files_outside_the_project(document: str) -> None:
    assert re.findall(OUTSIDE, read(document)) == []


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document != "CHANGELOG.md"])
def test_named_files_exist(document: str) -> None:
    """Files in code spans: a path from the root, the package or its benchmarks, or a name that some file has."""
    folders = [ROOT, ROOT / "pdevis", ROOT / "pdevis" / "benchmarks"]
    for name in re.findall(r"`([\w./-]+\.(?:py|md|toml|txt))`", without_code(read(document))):
        if "/" in name:
            assert any((folder / name).is_file() for folder in folders), f"{document}: {name} does not exist"
        else:
            assert name in file_names(), f"{document}: there is no {name}"


@cache
def file_names() -> set[str]:
    folders = [ROOT / name for name in ("pdevis", "evaluation", "summary", "tools", "Data", "docs", "tests")]
    return {
        path.name for folder in [ROOT, *folders] for path in (folder.rglob if folder != ROOT else folder.glob)("*.*")
    }


COMMAND_TABLE = {  # row of the table of command lines: a script that has its flags
    "`appInference.py`": "appInference.py",
    "`evaluation/*/evaluate_*.py`": "evaluation/mmlu/evaluate_mmlu.py",
    "`evaluate_specbench.py`": "evaluation/specbench/evaluate_specbench.py",
    "`summary/*/summary_*.py`": "summary/mmlu/summary_mmlu.py",
    "all that load a pair": "evaluation/mmlu/evaluate_mmlu.py",
    "all that draft": "appInference.py",
    "all that decode": "appInference.py",
}


@pytest.mark.parametrize("row", COMMAND_TABLE)
def test_flags_of_the_command_table_exist(row: str) -> None:
    line = next(line for line in read("docs/architecture.md").splitlines() if line.startswith(f"| {row} |"))
    parser = runpy.run_path(str(ROOT / COMMAND_TABLE[row]))["build_parser"]()
    declared = {flag.replace("-", "_") for flag in parser._option_string_actions}
    flags = re.findall(r"`(--[\w-]+)`", line)
    assert [flag for flag in flags if flag.replace("-", "_") not in declared] == []
    assert flags


def test_decoding_page_lists_the_settings_with_their_flags_and_defaults() -> None:
    parser = runpy.run_path(str(ROOT / "appInference.py"))["build_parser"]()
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    rows = re.findall(r"^\| `(\w+)` \| (?:`(--\w+)`)? ?\| (.*?) \| (.*?) ?\| .+ \|$", read("docs/decoding.md"), re.M)
    default = DecodeConfig()
    expected = {
        (item.name, flags.get(item.name, ""), str(getattr(default, item.name))) for item in fields(DecodeConfig)
    }
    assert {row[:3] for row in rows} == expected
    assert len(rows) == len(expected)
    assert {name for name, _, _, source in rows if source} == {*MODEL_FIELDS, "eos_ids"}
    named = {word for *_, source in rows for word in re.findall(r"`(\w+)`", source)}
    assert named <= {*NEUTRAL_SETTINGS, *NEUTRAL_SAMPLING, "eos_token_id"}


def test_glossary_has_the_words_of_the_method() -> None:
    rows = re.findall(r"^\| (.*?) \|", read("docs/architecture.md").partition("## Glossary")[2], re.M)
    words = {row.replace("`", "") for row in rows}
    assert [term for term in GLOSSARY_TERMS if term not in words] == []
    assert len(rows) == len(words), "a word has two meanings"


@cache
def source_messages() -> tuple[str, ...]:
    """All texts in the code of the package, with … for the values that are put into them."""
    texts = []
    for path in sorted((ROOT / "pdevis").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


MESSAGES = re.findall(r"\*\*`(.+?)`\*\*", read("docs/troubleshooting.md").replace("\n", " "))


def test_troubleshooting_has_messages() -> None:
    assert len(MESSAGES) >= 30


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_troubleshooting_are_the_programs(message: str) -> None:
    assert any(message.removesuffix("…") in text for text in source_messages()), message


def test_models_page_lists_the_families() -> None:
    rows = re.findall(r"^\| .* \| `(\w+)` \|$", read("docs/models.md").partition("## Architectures")[2], re.M)
    assert sorted(rows) == sorted(FAMILIES)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_pages_list_the_benchmarks(benchmark: str) -> None:
    row = rf"^\| .*`evaluation/{benchmark}/evaluate_{benchmark}\.py`, `summary/{benchmark}/summary_{benchmark}\.py`"
    assert re.search(row, read("docs/evaluation.md"), re.M)
    for heading in ("Sources", "Schemas", "Scores"):
        section = read("Data/README.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert re.search(rf"^\| {benchmark} \|", section, re.M), heading
    names = re.search(r"runs a benchmark \((.*?)\)", read("README.md"), re.S)[1]
    assert benchmark in names.lower().split(", ")


def test_every_page_is_linked_from_the_readme() -> None:
    text = read("README.md")
    for document in DOCUMENTS[1:]:
        assert f"]({document}" in text, document


def test_rules_of_this_file_find_what_they_are_for() -> None:
    assert prose("a `b` c\n\n    code\n| cell |\n```\nx\n```\nd") == "a  c\n\n\n\n\n\n\nd"
    assert anchors("# One two: three\n## 2026-11-26: lanes, on `x`") == {"one-two-three", "2026-11-26-lanes-on-x"}
    assert re.search(rf"\b(?:{BANNED})\b", "measured in turn")
    assert re.search(rf"\b(?:{EARLIER})\b", "It no longer does.")
    assert not isinstance(Path("a"), str)
