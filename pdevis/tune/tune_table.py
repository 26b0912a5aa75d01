"""Tables of a tuning run on stdout: the measurements, and the expected speed of each choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdevis.tune.selection import Candidate
from pdevis.tune.timing import ROUND_GAMMA, SUBLAYERS
from pdevis.tune.tune_report import Measurements, TuneResult
from pdevis.util.console import MISSING, format_number, make_table
from pdevis.util.labels import format_models

GAMMAS = (1, 2, 3, 4, 6, 8)  # columns of the table of rules
SUBLAYER_COLUMNS = ("att.", "MLP", "head")
LAYERS_PER_ROW = 8  # of the table of divergences


def show_measurements(console: Console, result: TuneResult) -> None:
    """Print all measurements of one pair of formats."""
    for label in format_models(result.profile.pair):
        console.print(Text(label))
    if result.measured.thread_seconds:
        console.print(_threads_table(result.measured))
    console.print(_forwards_table(result.measured))
    if result.measured.divergences:
        console.print(_divergences_table(result.measured.divergences))
    console.print(_rules_table(result))
    console.print(_gammas_table(result))


def show_choice(console: Console, result: TuneResult, results: Sequence[TuneResult]) -> None:
    """Print the chosen settings with their expected and their measured speed.

    Args:
        console: where to print.
        result: of the chosen weight formats.
        results: of all weight formats that were measured.
    """
    chosen, profile = result.chosen, result.profile
    if len(results) > 1:
        console.print(_formats_table(results))
    console.print(_check_table(result))
    if not result.check.same_tokens:
        console.print(
            Text("the three runs differ in their tokens: forwards over one and over several tokens round differently")
        )
    threads = "" if profile.threads is None else f", {profile.threads} threads"
    if chosen.drafting_pays:
        low, high = chosen.speedup_range()
        expected = (
            f"expected {_rate(result.expected_rate)} tok/s, {result.expected_speedup:.2f}x plain decoding "
            f"({low:.2f}x to {high:.2f}x from text to text)"
        )
    else:
        expected = (
            f"drafting does not pay here (best rule: {chosen.speedup(chosen.gamma):.2f}x plain decoding), so γ = auto "
            "decodes plainly and tries again now and then"
        )
    console.print(Text(f"chosen: {chosen.name}, γ = {profile.gamma}{threads}, formats {result.formats}: {expected}"))


def _formats_table(results: Sequence[TuneResult]) -> Table:
    rows = [
        (
            result.formats,
            _rate(result.chosen.rate(0)),
            _rate(result.expected_rate),
            f"{result.expected_speedup:.2f}x",
        )
        for result in results
    ]
    columns = ("formats, target/drafter", "plain tok/s", "expected tok/s", "x plain")
    return _titled_table("Weight formats (the target's also changes the text that is written)", columns, rows)


def _threads_table(measured: Measurements) -> Table:
    rows = []
    for count, seconds in sorted((measured.thread_seconds or {}).items()):
        name = f"{count}{' *' if count == measured.threads else ''}"
        rows.append((name, *(_ms(seconds.get(part)) for part in ("draft", "verify", "round"))))
    columns = ("threads", "draft step ms", f"verify {ROUND_GAMMA + 1} ms", f"round γ={ROUND_GAMMA} ms")
    return _titled_table("Threads", columns, rows)


def _forwards_table(measured: Measurements) -> Table:
    target, drafter = measured.forward_seconds["target"], measured.forward_seconds["draft"]
    rows = []
    for width in target:
        target_parts, drafter_parts = (
            [_ms(measured.sublayer_seconds[model][width].get(name)) for name in SUBLAYERS]
            for model in ("target", "draft")
        )
        ratio = f"{target[width] / target[1]:.2f}x"
        rows.append((str(width), _ms(target[width]), ratio, *target_parts, _ms(drafter[width]), *drafter_parts))
    columns = ("k", "target", "to k=1", *SUBLAYER_COLUMNS, "drafter", *SUBLAYER_COLUMNS)
    return _titled_table("A forward over k tokens, one attention, one MLP, the head: median ms", columns, rows)


def _divergences_table(divergences: Sequence[float]) -> Table:
    rows = []
    for start in range(0, len(divergences), LAYERS_PER_ROW):
        cells = [f"{value:.3f}" for value in divergences[start : start + LAYERS_PER_ROW]]
        rows.append((f"{start}…{start + len(cells) - 1}", *cells, *[""] * (LAYERS_PER_ROW - len(cells))))
    columns = ("layers", *(f"+{i}" for i in range(LAYERS_PER_ROW)))
    return _titled_table("The drafter's divergence by layer, 1 - cos(after, before), mean", columns, rows)


def _rules_table(result: TuneResult) -> Table:
    """Return the costs of each rule and its expected speed at its best γ."""
    rows = []
    for candidate in result.candidates:
        gamma = candidate.gamma
        rows.append(
            (
                _marked_name(candidate, result),
                f"{candidate.acceptance[0]:.2f}",
                _ms(candidate.costs(gamma).draft_seconds),
                f"{candidate.skipped:.1f}",
                str(gamma),
                format_number(candidate.acceptance_rate(gamma), 2),
                _rate(candidate.rate(gamma)),
                f"{candidate.speedup(gamma):.2f}x",
            )
        )
    columns = ("drafting rule", "1st", "step ms", "saved", "γ", "α", "tok/s", "x plain")
    exact = result.candidates[0]
    title = (
        f"Expected speed of each rule at its best γ (plain: {_rate(exact.rate(0))} tok/s)\n"
        f"1st: right first tokens; saved: layers a step; {exact.tested} tokens compared (exact)"
    )
    return _titled_table(title, columns, rows)


def _gammas_table(result: TuneResult) -> Table:
    rows = [
        (_marked_name(candidate, result), *(f"{candidate.speedup(gamma):.2f}x" for gamma in GAMMAS))
        for candidate in result.candidates
    ]
    return _titled_table("Expected speed over plain decoding by γ", ("", *(f"γ={gamma}" for gamma in GAMMAS)), rows)


def _marked_name(candidate: Candidate, result: TuneResult) -> str:
    return candidate.name + " *" * (candidate is result.chosen)


def _check_table(result: TuneResult) -> Table:
    """Return the rates predicted from the measured texts, predicted for the acceptance on this prompt, and measured."""
    chosen, check, gamma = result.chosen, result.check, result.chosen.gamma
    plain = check.rates["plain"]

    def measured(run: str) -> tuple[str, str]:
        speed = f"{_rate(check.rates[run])} ({check.rates[run] / plain:.2f}x)"
        return speed, format_number(check.acceptance_rates[run], 2)

    predicted = f"{_rate(chosen.rate(gamma))} ({chosen.speedup(gamma):.2f}x)"
    acceptance = format_number(chosen.acceptance_rate(gamma), 2)
    rows = [
        ("plain decoding", _rate(chosen.rate(0)), MISSING, MISSING, *measured("plain")),
        (f"{chosen.name}, γ={gamma}", predicted, acceptance, _rate(check.predicted_rate), *measured("fixed")),
        (f"{chosen.name}, γ=auto", MISSING, MISSING, MISSING, *measured("auto")),
    ]
    columns = ("tok/s (x plain)", "predicted", "α", "for α here", "measured", "α here")
    return _titled_table(f"The choice (*) on another prompt, {check.new_tokens} tokens per run", columns, rows)


def _titled_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = make_table(columns, rows)
    table.title, table.title_justify = title, "left"
    return table


def _ms(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{1000 * seconds:.{1 if seconds >= 0.001 else 3}f}"


def _rate(value: float) -> str:
    return f"{value:.1f}"
