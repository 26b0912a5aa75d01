"""Answers of a scripted pair to a scripted task: settings, blocks, conversations, failures, and totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from helpers.chat import FakePair
from pdevis.benchmarks.runs.conversation import GenerationSettings, derive_seed, warm_up
from pdevis.benchmarks.runs.evaluate import ItemRunner, RunningTotals
from pdevis.benchmarks.runs.result_files import METHODS, make_block, make_conversation_block
from pdevis.benchmarks.tasks import get_task
from pdevis.config import DecodeConfig
from pdevis.generation import DecodeStats, Generation
from pdevis.reasoning.reasoning_stream import ReasoningStream


@dataclass
class FakeTask:
    """Items are {"id", "turns"}."""

    name: str = "mmlu"

    def prompts(self, item: dict[str, Any]) -> list[str]:
        return item["turns"]

    def entry(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"question_id": item["id"], "prompt": item["turns"][0], "label": "A"}


def items(*turns: list[str]) -> list[tuple[int, dict[str, Any]]]:
    return [(index, {"id": f"q{index}", "turns": question}) for index, question in enumerate(turns)]


def run(pair: FakePair, task: FakeTask, *turns: list[str], **settings: Any) -> list[dict[str, Any]]:
    runner = ItemRunner(pair, task, GenerationSettings(settings.pop("methods", METHODS), DecodeConfig(**settings)))
    return [runner.run(index, item) for index, item in items(*turns)]


def test_an_entry_holds_a_block_per_method() -> None:
    (entry,) = run(FakePair(), FakeTask(), ["why?"])
    assert list(entry) == ["question_id", "prompt", "label", "target_only", "drafter_only", "speculative"]
    target, ours = entry["target_only"], entry["speculative"]
    assert (target["output_text"], target["tokens_generated"], target["token_ids"]) == ("hello", 5, list(b"hello"))
    assert target["seconds"] == pytest.approx(0.5)  # prefill (1 s) apart
    assert target["prefill_seconds"] == 1
    assert target["throughput_toks_per_sec"] == pytest.approx(10)
    assert target["mean_skip"] is None
    assert "acceptance_rate" not in target
    assert ours["throughput_toks_per_sec"] == pytest.approx(20)
    assert (ours["drafted"], ours["accepted"], ours["draft_steps"]) == (8, 4, 8)
    assert ours["acceptance_rate"] == 0.5
    assert (ours["accept_lengths"], ours["spec_target_model_calls_reported"]) == ([3, 2], 2)
    assert ours["mean_skip"] == 10
    assert ours["same_as_target"] is True
    assert {"draft_seconds", "verify_seconds", "serial_depth"} <= set(ours)


def test_all_methods_get_the_same_prompts_and_limits_after_a_warm_up() -> None:
    pair = FakePair()
    run(pair, FakeTask(), ["one"], ["two"], max_new_tokens=100, gamma=3, temperature=0.5, seed=7)
    warm, timed = pair.calls[:3], pair.calls[3:]
    assert [call[0] for call in warm] == ["target", "drafter", "speculative"]
    assert all(call[2].max_new_tokens == 24 for call in warm)
    assert pair.resets == 1
    assert [call[0] for call in timed] == 2 * ["target", "drafter", "speculative"]
    for three in (timed[:3], timed[3:]):
        assert len({(tuple(call[1]), call[2]) for call in three}) == 1
    assert timed[0][2].max_new_tokens == 100
    assert timed[0][2].seed != timed[3][2].seed  # every question has its own
    assert not timed[0][2].reuse_prefix


def test_a_chosen_method_alone_and_a_limit_of_nothing() -> None:
    (entry,) = run(FakePair(), FakeTask(), ["why?"], methods=("drafter",), max_new_tokens=0)
    assert "target_only" not in entry
    block = entry["drafter_only"]
    assert (block["tokens_generated"], block["throughput_toks_per_sec"]) == (0, None)


def test_every_method_continues_its_own_conversation() -> None:
    pair = FakePair(replies=["w"] * 3 + ["a1", "a2", "b1", "b2", "c1", "c2"])
    (entry,) = run(pair, FakeTask("specbench"), ["first", "second"], temperature=1.0)
    prompts = ["".join(map(chr, ids)) for _, ids, _ in pair.calls[3:]]
    assert prompts == [text for a in ("a1", "b1", "c1") for text in ("u:first|", f"u:first|a:{a}|u:second|")]
    assert list(entry)[-3:] == ["target", "draft", "speculative"]
    block = entry["speculative"]
    assert [turn["output_text"] for turn in block["turns"]] == ["c1", "c2"]
    assert block["output_text"] == "c1\n\nc2"
    assert block["tokens_generated"] == 4
    assert block["accept_lengths"] == [2, 2]
    assert block["seconds"] == pytest.approx(sum(turn["seconds"] for turn in block["turns"]))
    assert block["prompt_tokens"] == len("u:first|") + len("u:first|a:c1|u:second|")


def test_without_a_chat_template_prompts_are_unchanged() -> None:
    pair = FakePair(replies=["w", "a1", "a2"], template=False)
    settings = GenerationSettings(("target",), DecodeConfig(), chat=False)
    ItemRunner(pair, FakeTask("specbench"), settings).run(0, {"id": "q0", "turns": ["first", "second"]})
    assert pair.prompts == ["first", "first", "first\n\na1\n\nsecond"]


def test_a_failing_item_is_recorded_and_the_run_continues() -> None:
    class Failing(FakePair):
        def generate(self, prompt: Any, config: DecodeConfig | None = None, method: str = "speculative") -> Any:
            if "bad" in "".join(map(chr, prompt)) and method == "drafter":
                raise RuntimeError("out of\n  memory")
            return super().generate(prompt, config, method)

    bad, good = run(Failing(), FakeTask(), ["bad"], ["good"])
    assert bad == {"question_id": "q0", "prompt": "bad", "label": "A", "error": "RuntimeError: out of memory"}
    assert good["speculative"]["output_text"] == "hello"


def test_a_warm_up_that_fails_is_repeated_with_the_next_item() -> None:
    class Short(FakePair):
        def generate(self, prompt: Any, config: DecodeConfig | None = None, method: str = "speculative") -> Any:
            if len(prompt) > 20:
                raise ValueError("too long")
            return super().generate(prompt, config, method)

    pair = Short()
    first, second = run(pair, FakeTask(), [30 * "x"], ["y"])
    assert first["error"] == "ValueError: too long"
    assert "error" not in second
    assert len(pair.calls) == 6


def test_ctrl_c_is_not_a_failing_item() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(FakePair(stop_at=1), FakeTask(), ["one"])


def test_seeds_do_not_depend_on_order() -> None:
    assert derive_seed(None, index=3, turn=0) is None
    seeds = {derive_seed(seed, index=index, turn=turn) for seed in (0, 1) for index in range(50) for turn in range(3)}
    assert len(seeds) == 300
    assert derive_seed(5, index=2, turn=1) == derive_seed(5, index=2, turn=1)
    assert all(0 <= seed < 2**48 for seed in seeds)


def test_a_warm_up_is_no_longer_than_the_limit() -> None:
    pair = FakePair()
    warm_up(pair, ["a", "b"], GenerationSettings(("target",), DecodeConfig(max_new_tokens=3)))
    assert [call[2].max_new_tokens for call in pair.calls] == [3]


def test_sums_of_turns_are_sums_not_means_of_rates() -> None:
    parts = [
        DecodeStats(new_tokens=10, drafted=8, accepted=8, draft_steps=8, skipped=16, total_seconds=1, rounds=2),
        DecodeStats(new_tokens=2, drafted=8, accepted=0, draft_steps=8, skipped=0, total_seconds=5, rounds=2),
    ]
    turns = [Generation([1], "a", parts[0]), Generation([2], "b", parts[1])]
    block = make_conversation_block(turns, [ReasoningStream(), ReasoningStream()])
    assert block["throughput_toks_per_sec"] == 2
    assert block["acceptance_rate"] == 0.5
    assert block["mean_skip"] == 1
    assert block["token_ids"] == [1, 2]
    assert make_block(DecodeStats(), "", [])["acceptance_rate"] is None


def test_totals_report_speed_and_quality_and_do_not_count_failures() -> None:
    task = get_task("mmlu")
    items = [{"question_id": i, "prompt": "Which?", "label": "A", "subject": f"s{i % 2}"} for i in range(3)]
    runner = ItemRunner(FakePair(replies=["A"] * 5 + ["B"] * 2), task, GenerationSettings(("target",), DecodeConfig()))
    totals = RunningTotals(task, ("target",))
    for unit, item in enumerate(items):
        entry = runner.run(unit, item)
        for _ in range(2):  # a unit counts once
            totals.add(unit, entry)
    totals.add(3, {"question_id": 3, "error": "RuntimeError: no"})
    assert totals.progress() == {"target": "10.0 tok/s, correct 1"}
    assert totals.lines() == ["target: 10.0 tok/s, accuracy_micro 1, accuracy_macro 1"]


def test_an_answer_that_cannot_be_scored_does_not_end_the_run() -> None:
    task = get_task("mmlu")
    runner = ItemRunner(FakePair(), task, GenerationSettings(METHODS, DecodeConfig()))
    entry = runner.run(0, {"question_id": 1, "prompt": "Which?", "label": "A", "subject": "s"})
    totals = RunningTotals(task, METHODS)
    totals.add(0, {name: value for name, value in entry.items() if name != "label"})
    assert totals.progress()["speculative"] == "20.0 tok/s"
    assert totals.lines()[-1] == "answers have not been scored: KeyError: 'label'"
    assert "2.00x the target's speed, acceptance 0.50" in totals.lines()[2]
