"""The tables of a tuning run, on stdout: what was found, and what each choice is expected to bring."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdevis.profile import Profile
from pdevis.tune.selection import Candidate
from pdevis.tune.timing import ROUND, SUBLAYERS
from pdevis.tune.tune_report import Found

GAMMAS = (1, 2, 3, 4, 6, 8)  # that the table of rules shows
SHORT = ("att.", "MLP", "head")
PER_LINE = 8  # layers in a line of the table of divergences


def show_found(console: Console, found: Found) -> None:
    """All measurements of one pair of formats."""
    labels = found.labels
    console.print(Text(f"target {labels['target']} ({labels['target_precision']}, {labels['target_device']})"))
    console.print(Text(f"drafter {labels['drafter']} ({labels['draft_precision']}, {labels['draft_device']})"))
    if found.thread_seconds:
        console.print(_threads(found))
    console.print(_forwards(found))
    if found.divergences:
        console.print(_divergences(found.divergences))
    console.print(_rules(found))
    console.print(_gammas(found))


def show_choice(console: Console, profile: Profile, found: Found, all_found: Sequence[Found]) -> None:
    """What the profile says, what that is expected to bring, and what it has brought."""
    chosen, check = found.chosen, found.check
    if len(all_found) > 1:
        rows = [
            (each.formats, _rate(each.chosen.rate(0)), _rate(each.expected_rate), f"{each.expected_speedup:.2f}x")
            for each in all_found
        ]
        columns = ("formats, target/drafter", "plain tok/s", "expected tok/s", "x plain")
        console.print(_grid("Weight formats (the target's decides what is written, too)", columns, rows))
    console.print(_check(found))
    if not check.same_tokens:
        console.print(Text("the three runs differ in their tokens: one and several tokens at once round differently"))
    threads = "" if profile.threads is None else f", {profile.threads} threads"
    low, high = chosen.spread()
    expected = (
        f"expected {_rate(found.expected_rate)} tok/s, {found.expected_speedup:.2f}x plain decoding "
        f"({low:.2f}x to {high:.2f}x from text to text)"
    )
    if not chosen.pays:
        expected = (
            f"drafting does not pay here (best rule: {chosen.speedup(chosen.gamma):.2f}x plain decoding), so γ = auto "
            "decodes plainly and tries again now and then"
        )
    console.print(Text(f"chosen: {chosen.name}, γ = {profile.gamma}{threads}, formats {found.formats}: {expected}"))


def _threads(found: Found) -> Table:
    """The round is 4 draft steps and their verification."""
    rows = []
    for count, seconds in sorted((found.thread_seconds or {}).items()):
        name = f"{count}{' *' if count == found.threads else ''}"
        rows.append((name, *(_ms(seconds.get(part)) for part in ("draft", "verify", "round"))))
    columns = ("threads", "draft step ms", f"verify {ROUND + 1} ms", f"round γ={ROUND} ms")
    return _grid("Threads", columns, rows)


def _forwards(found: Found) -> Table:
    target, drafter = found.forwards["target"], found.forwards["draft"]
    rows = []
    for width in target:
        parts = {model: found.sublayers[model][width] for model in ("target", "draft")}
        ours, theirs = ([_ms(parts[model].get(name)) for name in SUBLAYERS] for model in parts)
        ratio = f"{target[width] / target[1]:.2f}x"
        rows.append((str(width), _ms(target[width]), ratio, *ours, _ms(drafter[width]), *theirs))
    columns = ("k", "target", "to k=1", *SHORT, "drafter", *SHORT)
    return _grid("A forward over k tokens, one attention, one MLP, the head: median ms", columns, rows)


def _divergences(values: Sequence[float]) -> Table:
    rows = []
    for start in range(0, len(values), PER_LINE):
        line = [f"{value:.3f}" for value in values[start : start + PER_LINE]]
        rows.append((f"{start}…{start + len(line) - 1}", *line, *[""] * (PER_LINE - len(line))))
    columns = ("layers", *(f"+{place}" for place in range(PER_LINE)))
    return _grid("The drafter's divergence by layer, 1 - cos(after, before), mean", columns, rows)


def _rules(found: Found) -> Table:
    """One line a rule: what it costs, and what it brings at its best γ."""
    rows = []
    for each in found.candidates:
        gamma = each.gamma
        cost = (f"{each.acceptance[0]:.2f}", _ms(each.costs(gamma).draft_seconds), f"{each.skipped:.1f}")
        gain = (_share(each.alpha(gamma)), _rate(each.rate(gamma)), f"{each.speedup(gamma):.2f}x")
        rows.append((_marked(each, found), *cost, str(gamma), *gain))
    columns = ("drafting rule", "1st", "step ms", "saved", "γ", "α", "tok/s", "x plain")
    first = found.candidates[0]
    title = f"What each rule is expected to bring at its best γ (plain: {_rate(first.rate(0))} tok/s)\n"
    about = f"1st: right first tokens; saved: layers a step; {first.tested} tokens judged (exact)"
    return _grid(title + about, columns, rows)


def _gammas(found: Found) -> Table:
    rows = [(_marked(each, found), *(f"{each.speedup(g):.2f}x" for g in GAMMAS)) for each in found.candidates]
    return _grid("Expected speed over plain decoding by γ", ("", *(f"γ={g}" for g in GAMMAS)), rows)


def _marked(each: Candidate, found: Found) -> str:
    return each.name + " *" * (each is found.chosen)


def _check(found: Found) -> Table:
    """Predicted from the measured texts, predicted for what was accepted here, and measured."""
    chosen, check, gamma = found.chosen, found.check, found.chosen.gamma
    plain = check.rates["plain"]

    def measured(name: str) -> tuple[str, ...]:
        return f"{_rate(check.rates[name])} ({check.rates[name] / plain:.2f}x)", _share(check.alphas[name])

    predicted = f"{_rate(chosen.rate(gamma))} ({chosen.speedup(gamma):.2f}x)", _share(chosen.alpha(gamma))
    rows = [
        ("plain decoding", _rate(chosen.rate(0)), "–", "–", *measured("plain")),
        (f"{chosen.name}, γ={gamma}", *predicted, _rate(check.foreseen), *measured("fixed")),
        (f"{chosen.name}, γ=auto", "–", "–", "–", *measured("auto")),
    ]
    columns = ("tok/s (x plain)", "predicted", "α", "for α here", "measured", "α here")
    return _grid(f"The choice (*) on another prompt, {check.new_tokens} tokens, in turn", columns, rows)


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*row)
    return table


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f}" if seconds >= 0.001 else f"{1000 * seconds:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _rate(value: float) -> str:
    return f"{value:.1f}"
