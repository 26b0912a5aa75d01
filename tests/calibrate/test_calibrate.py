"""Choosing schedules and fitting corrections: against decoding itself, brute force, and by what they improve."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from helpers.tiny_models import DENSE, make_tokenizer
from pdevis.calibrate import schedule_source
from pdevis.calibrate.calibration_text import read_calibration_text
from pdevis.calibrate.choose_schedule import Part, allowed_parts, fastest_schedule
from pdevis.calibrate.fit_corrections import FitSettings, fit_corrections
from pdevis.calibrate.schedule_source import ScheduleSource
from pdevis.calibrate.teacher_forcing import FIRST_POSITION, ExactStates
from pdevis.config import DraftConfig
from pdevis.drafting.engine import DraftEngine
from pdevis.drafting.schedule import Group, exact_schedule, parse_schedule
from pdevis.drafting.wide_layers import make_layer
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.stack import DecoderStack

LAYERS = 6
DOCUMENTS = [[(37 * i + 11 * j) % 251 for i in range(60)] for j in range(4)]


def make_stack(tiny_model, arch: str = "llama") -> DecoderStack:
    """Make a model with small updates, so that layers are as alike as those of a trained one."""
    model = tiny_model(arch, layers=LAYERS)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= 0.2
        layer.mlp.down_proj.weight.data *= 0.2
    return DecoderStack(read_weights(model, "float64", torch.device("cpu")))


# ---- text ----


def test_the_packages_own_text_has_documents_for_fits_and_for_measurements():
    text = read_calibration_text(make_tokenizer(), 264, 512)
    assert text.tokens > 3000
    assert len(text.held_out) >= 4
    assert not set(map(tuple, text.held_out)) & set(map(tuple, text.fitted))
    assert read_calibration_text(make_tokenizer(), 264, 512).digest == text.digest
    assert max(map(len, [*text.fitted, *text.held_out])) <= 512


def test_a_users_text_is_divided(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    text = read_calibration_text(make_tokenizer(), 264, 100, file)
    assert text.tokens == 1800
    assert max(map(len, text.fitted)) <= 100
    assert text.held_out
    long = read_calibration_text(make_tokenizer(), 264, 4096, file)  # fewer documents than parts: they are divided
    assert long.held_out
    assert long.fitted


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short", "has 5 tokens, must have at least 512"), (None, "cannot be read"), (b"\xff\xfe\0", "UTF-8")],
)
def test_a_text_that_is_not_usable_is_one_line(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_calibration_text(make_tokenizer(), 264, 512, file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


# ---- teacher forcing ----


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("text", ["0-5", "0,1+2,3+4+5/1", "0,1a,2m,4+5"])
def test_teacher_forcing_computes_what_drafting_after_a_calibration_does(tiny_model, arch, text):
    stack = make_stack(tiny_model, arch)
    schedule = parse_schedule(text, LAYERS)
    layers = [make_layer(stack, group) for group in schedule.groups]
    states = ExactStates(stack, DOCUMENTS, 40)
    with torch.inference_mode():
        h = states.run(layers, states.hidden[0])
        assert len(h) >= 40
        engine = DraftEngine(stack, DraftConfig("parallel", check="static", schedule=text))
        for document, ids in zip(states.documents, DOCUMENTS, strict=True):
            for row, position in zip(range(document.rows.start, document.rows.stop), document.positions.tolist()):
                stack.rewind(0)
                stack.prefill(torch.tensor(ids[:position]))
                step = engine.draft(torch.tensor([ids[position]]))
                torch.testing.assert_close(step.hidden[0], h[row], rtol=1e-5, atol=1e-6)


def test_the_exact_schedule_changes_nothing(tiny_model):
    stack = make_stack(tiny_model)
    states = ExactStates(stack, DOCUMENTS, None)
    assert len(states.hidden[0]) == sum(len(document) - FIRST_POSITION for document in DOCUMENTS)
    assert len(states.hidden) == LAYERS + 1
    with torch.inference_mode():
        layers = [make_layer(stack, group) for group in exact_schedule(LAYERS).groups]
        change = states.output_change(states.run(layers, states.hidden[0]))
    assert change.kl == pytest.approx(0, abs=1e-5)
    assert (change.changed, change.retention, change.self_retention) == (0, 1, 1)
    assert stack.length == 0


def test_a_changed_output_is_measured(tiny_model):
    stack = make_stack(tiny_model)
    states = ExactStates(stack, DOCUMENTS, None)
    with torch.inference_mode():
        h = states.hidden[2]  # as if all layers after the second were dropped
        change = states.output_change(h)
        exact, other = (stack.logits(state).float().log_softmax(-1) for state in (states.hidden[-1], h))
    kl = torch.nn.functional.kl_div(other, exact, log_target=True, reduction="batchmean")
    same = exact.argmax(-1) == other.argmax(-1)
    best = exact.exp().amax(-1)
    assert change.kl == pytest.approx(float(kl), rel=1e-4)
    assert change.changed == pytest.approx(1 - float(same.float().mean()))
    assert change.self_retention == pytest.approx(float(best[same].sum() / best.sum()), rel=1e-4)
    kept = exact.exp().gather(-1, other.argmax(-1, keepdim=True)).sum() / best.sum()
    assert change.retention == pytest.approx(float(kept), rel=1e-4)


# ---- choosing ----


def test_the_parts_that_each_mode_allows():
    def texts(**settings) -> set[str]:
        return {str(group or first) for first, _, group in allowed_parts(7, DraftConfig(check="static", **settings))}

    assert texts(mode="skip") == {text for i in range(2, 6) for text in (f"{i}", f"{i}a", f"{i}m")}
    pairs = {"2+3", "2+3/1", "3+4", "3+4/1", "4+5", "4+5/1"}
    assert texts(mode="parallel") == pairs
    assert texts(mode="auto") == texts(mode="skip") | pairs
    assert texts(mode="parallel", window=3, mlp_window=3, keep_first=3) == {
        "3+4", "3+4/1", "4+5", "4+5/1", "3+4+5", "3+4+5/1",
    }  # fmt: skip


def test_dynamic_programming_finds_what_trying_all_schedules_finds():
    generator = torch.Generator().manual_seed(5)

    def number() -> float:
        return float(torch.rand(1, generator=generator))

    layers = 6
    parts = [Part(i, i + 1, Group((i,)), 1.0, 0.0) for i in range(layers)]
    for i in range(layers):
        parts.append(Part(i, i + 1, None, 0.0, 0.1 + number()))
        parts.append(Part(i, i + 1, Group((i,), sublayers="mlp"), 0.3 + 0.4 * number(), number()))
        if i + 1 < layers:
            parts.append(Part(i, i + 2, Group((i, i + 1), 2), 1 + number(), 0.5 * number()))

    def all_schedules(layer: int):
        if layer == layers:
            yield ()
        for part in parts:
            if part.first == layer:
                yield from ((part, *rest) for rest in all_schedules(part.end))

    tried = [(sum(p.seconds for p in s), sum(p.effect for p in s)) for s in all_schedules(0)]
    for limit in (0.01, 0.3, 0.7, 1.5, 10.0):
        schedule, seconds = fastest_schedule(parts, layers, limit)
        assert schedule.layers == layers
        best = min(cost for cost, effect in tried if effect <= limit)
        # effects are rounded up to steps of 1/200 of the limit, so one that just fits may be missed
        almost = min(cost for cost, effect in tried if effect <= 0.97 * limit)
        assert best <= seconds + 1e-9
        assert seconds <= almost + 1e-9


def make_source(stack: DecoderStack, tmp_path, monkeypatch, **changes) -> tuple[ScheduleSource, list[str]]:
    """Return a source with a cache folder of its own, and the list of what was loaded and said."""
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))
    log: list[str] = []

    def load() -> DecoderStack:
        log.append("loaded")
        return stack

    options = {"model": "abc", "layers": LAYERS, "precision": "float64", "device": torch.device("cpu")}
    options |= {"tokenizer": make_tokenizer(), "drafts_for_itself": False, "on_progress": log.append}
    return ScheduleSource(load, **(options | changes)), log


def test_a_choice_is_kept_and_a_second_start_loads_and_measures_nothing(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule_source, "PART_POSITIONS", 24)
    monkeypatch.setattr(schedule_source, "SCHEDULE_POSITIONS", 24)
    stack = make_stack(tiny_model)
    source, log = make_source(stack, tmp_path, monkeypatch)
    config = DraftConfig("auto", check="static", retention=0.9)
    resolved = source.resolve(config)
    assert log.count("loaded") == 1
    schedule = parse_schedule(resolved.schedule, LAYERS)
    assert schedule.depth < 2 * LAYERS
    assert resolved.mode == ("parallel" if schedule.lanes > 1 else "skip")
    [file] = (tmp_path / "cache" / "schedules").iterdir()
    kept = json.loads(file.read_text())
    assert kept["schedule"] == resolved.schedule
    assert kept["retention"] >= 0.9
    again, log = make_source(stack, tmp_path, monkeypatch)
    assert again.resolve(config) == resolved
    assert log == []
    file.write_text("{}")  # broken: chosen again
    again, log = make_source(stack, tmp_path, monkeypatch)
    again.resolve(config)
    assert log.count("loaded") == 1
    for change in ({"model": "other"}, {"precision": "int8"}, {"drafts_for_itself": True}):
        assert make_source(stack, tmp_path, monkeypatch, **change)[0]._cache_file(config) != file
    assert source._cache_file(DraftConfig("auto", check="static", retention=0.91)) != file


def test_a_retention_of_one_keeps_every_layer_that_matters(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule_source, "PART_POSITIONS", 24)
    monkeypatch.setattr(schedule_source, "SCHEDULE_POSITIONS", 24)
    source, _ = make_source(make_stack(tiny_model), tmp_path, monkeypatch)
    wide = source.resolve(DraftConfig("parallel", check="static", retention=0.0)).schedule
    narrow = source.resolve(DraftConfig("parallel", check="static", retention=1.0)).schedule
    assert parse_schedule(wide, LAYERS).depth <= parse_schedule(narrow, LAYERS).depth
    prepared = source.resolve(DraftConfig("parallel", check="planned", schedule="auto", retention=0.0)).schedule
    assert wide in prepared.split(";")


def test_settings_of_a_schedule_that_cannot_be_are_one_line(tiny_model, tmp_path, monkeypatch):
    source, log = make_source(make_stack(tiny_model), tmp_path, monkeypatch)
    for settings, message in (
        ({"window": 7}, "window = 7: must be at most 6, the drafter's number of layers"),
        ({"attention_window": 9}, "attention_window = 9: must be at most 6"),
        ({"schedule": "0-9"}, "has layers 0 to 5 only"),
        ({"schedule": "0,1+2;0-9"}, "has layers 0 to 5 only"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            source.resolve(DraftConfig("parallel", **({"check": "static"} | settings)))
        assert "\n" not in str(error.value)
    assert log == []
    source, log = make_source(make_stack(tiny_model), tmp_path, monkeypatch, calibration_text=tmp_path / "no.txt")
    with pytest.raises(ValueError, match=r"calibration_text = '.*no\.txt': cannot be read"):
        source.resolve(DraftConfig("parallel", check="static"))


def test_a_schedule_that_is_given_sets_the_mode(tiny_model, tmp_path, monkeypatch):
    source, log = make_source(make_stack(tiny_model), tmp_path, monkeypatch)
    for text, mode in (("0-5", "exact"), ("0,1+2,3-5", "parallel"), ("0-3,5", "skip"), ("0-3,4a,5", "skip")):
        assert source.resolve(DraftConfig(check="static", schedule=text)).mode == mode
    assert source.resolve(DraftConfig("parallel", check="static", schedule="0-3,5")).mode == "parallel"
    assert log == []


# ---- corrections ----


@pytest.mark.parametrize(
    ("text", "rank"), list(itertools.product(["0,1+2,3+4/1,5", "0-2,4-5", "0,1+2,4-5"], [None, 8]))
)
def test_corrections_bring_the_output_nearer_to_the_exact_one(tiny_model, text, rank):
    stack = make_stack(tiny_model, "qwen2")
    documents = [
        [int(i) for i in torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(j))] for j in range(4)
    ]
    fitted, held_out = ExactStates(stack, documents[:3], None), ExactStates(stack, documents[3:], None)
    schedule = parse_schedule(text, LAYERS)
    with torch.inference_mode():
        corrections = fit_corrections(stack, fitted, schedule, FitSettings(rank=rank), provenance={"text": "random"})

        def kl(states: ExactStates, *made) -> float:
            layers = [make_layer(stack, group, *made) for group in schedule.groups]
            return states.output_change(states.run(layers, states.hidden[0])).kl

        assert kl(fitted, corrections) < 0.95 * kl(fitted)
        assert kl(held_out, corrections) < kl(held_out)
    wide = {name for group in schedule.groups if len(group.layers) > 1 for name in map(str, group.layers)}
    assert {name.split(".")[1] for name in corrections.maps if name.startswith("mlp.")} == wide
    assert {name for name in corrections.maps if name.startswith("write.")} == (
        {"write.2"} if text == "0-2,4-5" else {"write.1", "write.2"} if text == "0,1+2,4-5" else set()
    )
    assert all(m.v.shape[0] == (rank or 64) for m in corrections.maps.values())
    assert corrections.schedule == text
