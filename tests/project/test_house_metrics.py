"""Limits of the source tree: what the decode loop imports, sizes of files, folders and functions, names, docstrings."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from typing import Any

import pytest

from helpers import ROOT

MAX_CORE_MODULES = 16
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_FILES_IN_FOLDER = 9


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("house_metrics", ROOT / "tools" / "house_metrics.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["house_metrics"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(scope="module")
def metrics() -> Any:
    return tool.measure(tool.read_sources())


def source_of(text: str, name: str = "pdevis/made_up.py") -> Any:
    return tool.SourceFile(name, text, ast.parse(text))


def test_decode_loop_needs_few_modules(metrics: Any) -> None:
    assert tool.CORE in metrics.core_modules
    assert len(metrics.core_modules) <= MAX_CORE_MODULES, metrics.core_modules


def test_decode_loop_loads_no_loader_process_or_benchmark(metrics: Any) -> None:
    assert metrics.core_foreign == []


def test_functions_are_short(metrics: Any) -> None:
    assert [function for function in metrics.longest_functions if function.lines > MAX_FUNCTION_LINES] == []


def test_files_are_short(metrics: Any) -> None:
    assert [size for size in metrics.largest_files if size[1] > MAX_FILE_LINES] == []


def test_folders_hold_few_files(metrics: Any) -> None:
    assert {folder: count for folder, count in metrics.files_per_folder.items() if count > MAX_FILES_IN_FOLDER} == {}


def test_module_names_are_unique(metrics: Any) -> None:
    assert metrics.duplicate_modules == {}


def test_docstrings_say_what_something_is_or_does(metrics: Any) -> None:
    assert metrics.question_docstrings == []


def test_identifiers_use_the_words_of_the_field(metrics: Any) -> None:
    assert metrics.banned_names == []


def test_imports_have_no_circle(metrics: Any) -> None:
    assert metrics.import_circles == []


def test_every_file_is_measured(metrics: Any) -> None:
    names = {source.name for source in tool.read_sources()}
    expected = {"appInference.py", "pdevis/pair.py", "tests/conftest.py", "Data/prepare.py", "tools/house_metrics.py"}
    assert expected <= names
    assert sum(metrics.files_per_folder.values()) == len(names)


def test_circle_is_found_and_lazy_and_typing_imports_are_none() -> None:
    first = source_of("from pdevis import second\n", "pdevis/first.py")
    second = source_of("import pdevis.first\n", "pdevis/second.py")
    lazy = source_of("def load():\n    import pdevis.first\n", "pdevis/second.py")
    typing = source_of("if TYPE_CHECKING:\n    import pdevis.first\n", "pdevis/second.py")
    tried = source_of("try:\n    import pdevis.first\nexcept ImportError:\n    pass\n", "pdevis/second.py")
    assert tool.import_circles([first, second]) == ["pdevis.first -> pdevis.second -> pdevis.first"]
    assert tool.import_circles([first, tried]) == ["pdevis.first -> pdevis.second -> pdevis.first"]
    assert tool.import_circles([first, lazy]) == tool.import_circles([first, typing]) == []


def test_banned_words_are_parts_of_names_and_test_names_are_sentences() -> None:
    assert tool.banned_words("SharedBoard") == {"board"}
    assert tool.banned_words("run_goes_on") == {"goes"}
    assert tool.banned_words("test_a_run_goes_on") == tool.banned_words("dashboard") == set()
    found = tool.identifiers(source_of("def f(mail):\n    other.seat = 1\n"))
    assert {name for _, name in found if tool.banned_words(name)} == {"mail", "seat"}


def test_lengths_and_docstrings_of_nested_functions_count() -> None:
    source = source_of('def f():\n    """Whether."""\n    def g():\n        """Return it."""\n        return 1\n')
    assert [(function.name.split()[1], function.lines) for function in tool.functions(source)] == [("f", 5), ("g", 3)]
    assert list(tool.docstrings(source)) == [(2, "Whether."), (4, "Return it.")]


def test_command_prints_the_measures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "loaded_by", lambda module: [module])
    assert tool.main([]) == 0
    assert "longest function" in capsys.readouterr().out
    assert tool.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["core_modules"] == [tool.CORE]
