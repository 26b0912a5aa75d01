"""The result of evaluate_gpu.py as tables. Loads no model.

python summary/gpu/summary_gpu.py --input gpu.json --output gpu_summary.json --plot gpu.png
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from pdevis.util.console import MISSING, format_number, make_table, print_lines
from pdevis.util.files import parse_json, read_text

BENCHMARK = "gpu"
SYNTHETIC = "SYNTHETIC acceptance, drawn: times are real, texts mean nothing"


def read_gpu(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ValueError if it is not one of evaluate_gpu.py."""
    try:
        result = parse_json(read_text(path))
    except ValueError:
        result = None
    if not isinstance(result, dict) or result.get("benchmark") != BENCHMARK or "parts" not in result:
        raise ValueError(f"--input {path}: must be a result of evaluate_gpu.py")
    return result


def parts_of(result: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Return the measured parts whose names begin with a word, without the word."""
    found = {name: part for name, part in result["parts"].items() if name.split()[0].rstrip(",") == kind}
    return {name.removeprefix(kind).strip(): part for name, part in found.items() if is_measured(part)}


def is_measured(part: dict[str, Any]) -> bool:
    """Return False for a part that failed or was left out."""
    return "error" not in part and "left_out" not in part


def draft_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of draft steps."""
    rows = []
    others = parts_of(result, "transformers")
    for key, part in parts_of(result, "drafter").items():
        exact = next((step["ms"] for name, step in part["steps"].items() if name.startswith("exact, ")), None)
        graphs = part["steps"].get("exact, graphs", {}).get("ms", exact)
        for name, step in (part["steps"] | others.get(key, {"steps": {}})["steps"]).items():
            share = f"{100 * step['share_of_floor']:.0f} %" if step["depth"] == 1 else MISSING
            over = f"{graphs / step['ms']:.2f}" if graphs else MISSING
            rows.append((f"{key}, {name}", format_number(step["ms"], 3), share, over))
    return rows


def target_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of targets."""
    rows = []
    for key, part in parts_of(result, "target").items():
        verify = " / ".join(f"{ms:.2f}" for ms in part["verify_ms"].values())
        rows.append(
            (
                key,
                verify,
                format_number(part["plain_ms_per_token"], 2),
                f"{100 * part['plain_share_of_floor']:.0f} %",
                format_number(part["transformers_ms_per_token"], 2),
                str(part["differing_rows"]),
            )
        )
    return rows


def pair_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of pairs: speeds over plain decoding by γ."""
    rows = []
    for name, part in parts_of(result, "pair").items():
        gammas = sorted({row["gamma"] for row in part["rows"]})
        cells: dict[tuple[str, float], dict[int, float]] = {}
        for row in part["rows"]:
            cells.setdefault((row["mode"], row["acceptance"]), {})[row["gamma"]] = row["over_plain"]
        for (mode, acceptance), by_gamma in cells.items():
            speeds = " / ".join(f"{by_gamma[gamma]:.2f}" for gamma in gammas)
            rows.append((f"{name}, {mode}", f"{acceptance:g}", " / ".join(map(str, gammas)), speeds))
    return rows


def head_lines(result: dict[str, Any]) -> list[str]:
    """Return the lines above the tables: device, versions, commit, bandwidth, exactness, tests."""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if value is not None)
    commit = f"commit {result['git']['commit'][:7]}" if result["git"] else "no commit"
    lines = [f"{result['device']}, {result['date']}, {commit}" + ", --quick" * result["quick"], versions]
    parts = result["parts"]
    for part in parts_of(result, "bandwidth").values():
        speed = f"{part['bytes_per_second'] / 1e9:.0f} GB/s"
        lines += [f"copy bandwidth: {speed}; floor: bytes of weights / bandwidth"]
    for part in parts_of(result, "exactness").values():
        lines.append(
            f"greedy text over {part['prompts']} prompts: {part['equal']} equal to plain decoding's, "
            f"{part['near_ties']} part at a near-tie, {part['real_differences']} differ "
            f"(acceptance {part['acceptance_rate']:.2f})"
        )
    for name, part in parts_of(result, "pair").items():
        if part["memory_bytes"]:
            lines += [f"{name}: at most {part['memory_bytes'] / 2**30:.1f} GiB of this process's GPU memory"]
    for part in parts_of(result, "embedded").values():
        lines.append(
            f"embedded model, float32: {part['same_tokens']:.1f} of {part['length']} tokens as on the CPU; plain "
            f"{part['plain_tokens_per_second']:.0f} tokens/s, speculative {part['speculative_over_plain']:.2f}x, "
            f"drafting ahead {part['ahead_over_speculative']:.2f}x that"
        )
    lines += [f"tests: {part['last_line']}" for part in parts_of(result, "tests").values()]
    lines += [f"{name}: FAILED, {part['error']}" for name, part in parts.items() if "error" in part]
    lines += [f"{name}: left out ({part['left_out']})" for name, part in parts.items() if "left_out" in part]
    notes = {note for part in parts.values() for note in part.get("notes", ()) if note.startswith("note: ")}
    return [*lines, *sorted(note for note in notes if " took " not in note)]


def show_gpu(console: Console, result: dict[str, Any]) -> None:
    """Print a result."""
    print_lines(console, head_lines(result))
    if rows := draft_rows(result):
        console.print(make_table(("draft step", "ms", "share of floor", "x exact, graphs"), rows))
    if rows := target_rows(result):
        columns = (
            "target",
            "ms for 1 / 2 / 4 / 8 / 16 tokens",
            "plain ms",
            "share of floor",
            "transformers ms",
            "rows",
        )
        console.print(make_table(columns, rows))
        print_lines(console, ["rows: how many of 16 tokens have other bits at once than one by one"])
    if rows := pair_rows(result):
        print_lines(console, [SYNTHETIC])
        console.print(make_table(("pair", "acceptance", "γ", "x plain decoding"), rows))


def run_gpu_summary(args: Namespace) -> None:
    """Read a result, then write, print and plot it. Raises ValueError for a user's mistake."""
    from pdevis.benchmarks.summary.summary_script import check_targets, write_summary
    from pdevis.util.console import make_console

    result = read_gpu(args.input)
    check_targets([args.input], {"--output": args.output, "--plot": args.plot})
    tables = {"draft_steps": draft_rows(result), "targets": target_rows(result), "pairs": pair_rows(result)}
    write_summary({"benchmark": BENCHMARK, "head": head_lines(result), "tables": tables}, args.output)
    if args.plot is not None:
        from pdevis.benchmarks.gpu.gpu_plot import draw_gpu

        draw_gpu(result, args.plot)
    show_gpu(make_console(), result)
