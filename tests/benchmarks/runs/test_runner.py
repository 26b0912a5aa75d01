"""Answers of a scripted pair to a scripted task: settings, blocks, conversations, failures, and the greedy check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from helpers.fake_pair import FakePair
from pdevis.benchmarks.runs.conversation import GenerationSettings, derive_seed, warm_up
from pdevis.benchmarks.runs.evaluate import ItemRunner
from pdevis.benchmarks.runs.lossless_check import compare_turns, count_matches, first_difference, format_match_counts
from pdevis.benchmarks.runs.result_files import METHODS, make_block, make_conversation_block
from pdevis.config import DecodeConfig
from pdevis.generation import DecodeStats, Generation


@dataclass
class FakeTask:
    """Items are {"id", "turns"}."""

    name: str = "mmlu"

    def prompts(self, item: dict[str, Any]) -> list[str]:
        return item["turns"]

    def entry(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"question_id": item["id"], "prompt": item["turns"][0], "label": "A"}


def items(*turns: list[str]) -> list[tuple[int, dict[str, Any]]]:
    return [(index, {"id": f"q{index}", "turns": each}) for index, each in enumerate(turns)]


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


def test_without_a_chat_template_turns_are_texts() -> None:
    pair = FakePair(replies=["w", "a1", "a2"], template=False)
    settings = GenerationSettings(("target",), DecodeConfig(), chat=False)
    ItemRunner(pair, FakeTask("specbench"), settings).run(0, {"id": "q0", "turns": ["first", "second"]})
    assert pair.prompts == ["first", "first", "first\n\na1\n\nsecond"]


def test_a_failing_item_is_recorded_and_the_run_goes_on() -> None:
    class Failing(FakePair):
        def generate(self, prompt: Any, config: DecodeConfig | None = None, method: str = "speculative") -> Any:
            if "bad" in "".join(map(chr, prompt)) and method == "drafter":
                raise RuntimeError("out of\n  memory")
            return super().generate(prompt, config, method)

    bad, good = run(Failing(), FakeTask(), ["bad"], ["good"])
    assert bad == {"question_id": "q0", "prompt": "bad", "label": "A", "error": "RuntimeError: out of memory"}
    assert good["speculative"]["output_text"] == "hello"


def test_a_warm_up_that_fails_is_tried_again_with_the_next_item() -> None:
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


def test_ctrl_c_is_no_failing_item() -> None:
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
    block = make_conversation_block([Generation([1], "a", parts[0]), Generation([2], "b", parts[1])])
    assert block["throughput_toks_per_sec"] == 2
    assert block["acceptance_rate"] == 0.5
    assert block["mean_skip"] == 1
    assert block["token_ids"] == [1, 2]
    assert make_block(DecodeStats(), "", [])["acceptance_rate"] is None


class Logits:
    """A target whose logits behind any text are the same; remembers what it was fed."""

    device = torch.device("cpu")

    def __init__(self, row: list[float]) -> None:
        self.row = torch.tensor(row)
        self.fed: list[int] = []

    def prefill(self, ids: torch.Tensor) -> None:
        self.fed += ids.tolist()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.fed += ids.tolist()
        return self.row.repeat(len(ids), 1)


@dataclass
class TargetOnly:
    target: Logits
    precision: str = "float32"
    resets: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, str]:
        return {"target_precision": self.precision}

    def reset(self) -> None:
        self.resets += 1


@pytest.mark.parametrize(
    ("precision", "gap", "near"),
    [
        ("float32", 1e-3, True),
        ("float32", 1e-2, False),
        ("packed", 1e-3, True),
        ("bfloat16", 0.5, True),
        ("bfloat16", 1.0, False),
        ("float64", 1e-3, False),
        ("unheard-of", 1e-2, False),
    ],
)
def test_near_ties_are_told_from_real_differences(precision: str, gap: float, near: bool) -> None:
    pair = TargetOnly(Logits([0.0, 20.0, 20.0 - gap, -5.0]), precision)
    found = first_difference(pair, [7, 8], [3, 1, 0], [3, 2, 0, 0])
    assert found is not None
    assert (found["position"], found["target_id"], found["speculative_id"]) == (1, 1, 2)
    assert found["logit_gap"] == pytest.approx(gap, rel=0.01)
    assert found["near_tie"] is near
    assert pair.target.fed == [7, 8, 3]
    assert pair.resets == 2


def test_an_answer_that_ends_early_really_differs() -> None:
    found = first_difference(None, [7], [3, 1], [3])
    assert found == {"position": 1, "target_id": 1, "speculative_id": None, "logit_gap": None, "near_tie": False}
    assert first_difference(None, [7], [3, 1], [3, 1]) is None


def test_logits_that_are_no_numbers_are_no_tie() -> None:
    pair = TargetOnly(Logits([float("nan"), 1.0, 1.0]))
    found = first_difference(pair, [7], [0], [1])
    assert found is not None
    assert (found["logit_gap"], found["near_tie"]) == (None, False)


def test_turns_behind_a_difference_are_not_compared() -> None:
    def answers(*ids: list[int]) -> list[Generation]:
        return [Generation(each, "", DecodeStats()) for each in ids]

    pair = TargetOnly(Logits([0.0, 1.0, 9.0]))
    blocks = [
        compare_turns(pair, [[7], [8]], answers([1], [1]), answers([1], [1])),
        compare_turns(pair, [[7], [8]], answers([1], [1]), answers([2], [2])),
    ]
    assert blocks[0] == {"same_as_target": True}
    assert blocks[1]["first_difference"]["turn"] == 0
    tie = {"same_as_target": False, "first_difference": {"near_tie": True}}
    counts = count_matches([*blocks, tie, {}])
    assert counts == {"equal": 1, "near_tie": 1, "different": 1}
    assert "1 of 3" in format_match_counts(counts)
    assert count_matches([{}]) is None
