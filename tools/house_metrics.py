"""Print measures of this source tree: what the decode loop imports, sizes of functions, files and folders, names.

    python tools/house_metrics.py          # one line per measure
    python tools/house_metrics.py --json

What a module needs is what a fresh interpreter has loaded after importing it. All other measures come from the syntax
trees of the Python files, which are not run.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pdevis.cli import Parser

ROOT = Path(__file__).resolve().parents[1]
CORE = "pdevis.decoding.speculative"
FOREIGN_TO_CORE = ("transformers", "accelerate", "multiprocessing", "rich")
OUTSIDE_CORE = ("pdevis.loading", "pdevis.parallel", "pdevis.benchmarks")
FOLDERS = ("pdevis", "tests", "tools", "evaluation", "summary", "Data")
REPEATABLE = ("__init__", "__main__")  # module names that every package may use
QUESTION = re.compile(r"(What|Where|Which|How|Whether|Who)\b")
# Words without a meaning in this field; an identifier may not have one of them as a part. Names of tests are sentences:
# they may use the plain English ones.
BANNED_WORDS = frozenset(("board", "seat", "seats", "mail", "obey", "settle", "settles", "judge", "kindly", "peers"))
BANNED_OUTSIDE_SENTENCES = frozenset(("told", "goes", "beside"))

PRINT_MODULES = "import sys, json, {0}; print(json.dumps(sorted(sys.modules)))"


@dataclass(frozen=True)
class SourceFile:
    """A Python file of the tree with its syntax tree; `name` is its path from the root."""

    name: str
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Function:
    """A function's place and its length in lines, from `def` to its end."""

    name: str
    lines: int


@dataclass(frozen=True)
class Metrics:
    """All measures of the tree."""

    core_modules: list[str]  # of pdevis, loaded by importing the decode loop
    core_foreign: list[str]  # modules that the decode loop must not load and loads
    longest_functions: list[Function]  # ten, the longest first
    largest_files: list[tuple[str, int]]  # ten, with their numbers of lines, the largest first
    files_per_folder: dict[str, int]  # .py files directly in each folder, the fullest first
    duplicate_modules: dict[str, list[str]]  # module name: the files that share it
    question_docstrings: list[str]  # file:line of docstrings that begin like a question
    banned_names: list[str]  # file:line name
    import_circles: list[str]  # a -> b -> a


def read_sources(root: Path = ROOT) -> list[SourceFile]:
    """Read the Python files of the tree, in the order of their paths."""
    paths = sorted(root.glob("*.py")) + [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    texts = [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return [SourceFile(name, text, ast.parse(text)) for name, text in texts]


def loaded_by(module: str) -> list[str]:
    """Names of all modules that a fresh interpreter has loaded after importing `module`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PRINT_MODULES.format(module)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def is_within(module: str, packages: Sequence[str]) -> bool:
    """True if `module` is one of the packages or lies in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def functions(source: SourceFile) -> Iterator[Function]:
    """Every function of a file, nested ones included."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Function(f"{source.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)


def docstrings(source: SourceFile) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a file: module, classes, functions."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def identifiers(source: SourceFile) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a file names: variables, attributes, arguments, functions, classes."""
    for node in ast.walk(source.tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not isinstance(node, ast.alias):
                yield getattr(node, "lineno", 0), name


def banned_words(name: str) -> set[str]:
    """Banned words that an identifier in snake_case or CamelCase contains."""
    spaced = "".join(f"_{letter}" if letter.isupper() else letter for letter in name)
    banned = BANNED_WORDS if name.startswith("test_") else BANNED_WORDS | BANNED_OUTSIDE_SENTENCES
    return set(spaced.lower().split("_")) & banned


def module_name(source: SourceFile) -> str:
    """The dotted name that a file of the tree is imported by."""
    return source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(source: SourceFile, modules: set[str]) -> set[str]:
    """Modules that a file imports when it is imported itself; imports inside functions are left out.

    Args:
        modules: Modules of the tree; `from package import module` then counts as an import of the module alone.
    """
    found: set[str] = set()
    for node in _statements(source.tree.body):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module}
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, those under `if` and `try` included, those under TYPE_CHECKING left out."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from _statements(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from _statements(node.body + node.orelse + [line for each in node.handlers for line in each.body])


def import_circles(sources: list[SourceFile]) -> list[str]:
    """Import circles among the modules of pdevis, one text for each."""
    package = {module_name(source): source for source in sources if source.name.startswith("pdevis/")}
    edges = {name: sorted(imports(source, set(package)) & package.keys()) for name, source in package.items()}
    finished: set[str] = set()
    circles: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            circles.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in finished:
            for other in edges[name]:
                visit(other, [*trail, name])
            finished.add(name)

    for name in edges:
        visit(name, [])
    return circles


def core_imports(sources: list[SourceFile]) -> tuple[list[str], list[str]]:
    """Modules of pdevis that the decode loop loads, and those modules that it must not load and loads.

    torch itself loads some of the latter: these count if a module of the decode loop imports them.
    """
    by_torch = set(loaded_by("torch"))
    loaded = [name for name in loaded_by(CORE) if name not in by_torch]
    core = {name for name in loaded if is_within(name, ["pdevis"])}
    imported = {name for source in sources if module_name(source) in core for name in imports(source, set())}
    unwanted = {name for name in loaded if name in FOREIGN_TO_CORE or is_within(name, OUTSIDE_CORE)}
    return sorted(core), sorted(unwanted | {name for name in imported if is_within(name, FOREIGN_TO_CORE)})


def duplicate_modules(sources: list[SourceFile]) -> dict[str, list[str]]:
    """Module names that several files share, with these files."""
    files: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        files[Path(source.name).stem].append(source.name)
    return {name: found for name, found in files.items() if len(found) > 1 and name not in REPEATABLE}


def measure(sources: list[SourceFile]) -> Metrics:
    """Measure the tree; starts two interpreters for the imports of torch and of the decode loop."""
    core_modules, core_foreign = core_imports(sources)
    lengths = [function for source in sources for function in functions(source)]
    sizes = [(source.name, source.text.count("\n")) for source in sources]
    folders = Counter(Path(source.name).parent.as_posix() for source in sources)
    return Metrics(
        core_modules=core_modules,
        core_foreign=core_foreign,
        longest_functions=sorted(lengths, key=lambda function: -function.lines)[:10],
        largest_files=sorted(sizes, key=lambda size: -size[1])[:10],
        files_per_folder=dict(folders.most_common()),
        duplicate_modules=duplicate_modules(sources),
        question_docstrings=[
            f"{source.name}:{line} {text.splitlines()[0]}"
            for source in sources
            for line, text in docstrings(source)
            if QUESTION.match(text)
        ],
        banned_names=[
            f"{source.name}:{line} {name}"
            for source in sources
            for line, name in identifiers(source)
            if banned_words(name)
        ],
        import_circles=import_circles(sources),
    )


def report(metrics: Metrics) -> str:
    """One line per measure, for a terminal."""
    function, (file, lines) = metrics.longest_functions[0], metrics.largest_files[0]
    folder, count = next(iter(metrics.files_per_folder.items()))
    rows = {
        f"modules that {CORE} loads": len(metrics.core_modules),
        "modules foreign to it that it loads": ", ".join(metrics.core_foreign) or 0,
        "longest function": f"{function.lines} lines, {function.name}",
        "largest file": f"{lines} lines, {file}",
        "most .py files in a folder": f"{count}, {folder}",
        "module names used twice": ", ".join(metrics.duplicate_modules) or 0,
        "docstrings that begin like a question": len(metrics.question_docstrings),
        "banned words in identifiers": len(metrics.banned_names),
        "import circles": len(metrics.import_circles),
    }
    return "\n".join(f"{name:<{max(map(len, rows))}}  {value}" for name, value in rows.items())


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="all measures with their lists, as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    metrics = measure(read_sources())
    print(json.dumps(asdict(metrics), indent=1) if args.json else report(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
