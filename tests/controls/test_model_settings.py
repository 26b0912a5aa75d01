"""The settings of a model's generation config: used on request, as transformers' `generate` uses them, else noted."""

from __future__ import annotations

import json
import random
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers import ROOT
from helpers.evaluation import Scripts, load
from pdevis import DecodeConfig, load_pair
from pdevis.benchmarks.runs.evaluate import ItemRunner
from pdevis.benchmarks.runs.result_files import read_meta
from pdevis.chat.session import ChatSession, TurnFinished
from pdevis.controls.model_settings import read_model_settings
from pdevis.lm_eval.adapter import model_class
from pdevis.lm_eval.arguments import read_request
from pdevis.loading.checkpoint import find_source, read_model
from pdevis.util.validation import ModelLoadError

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
GREEDY_CASES = 12
OUT = "o.json"


@pytest.fixture
def folder_with(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """folder_with(**settings): a tiny model with these settings in its generation_config.json."""

    def make(**settings: Any) -> str:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_folder("qwen3", layers=3, max_position_embeddings=4096), folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 258, **settings}))
        return str(folder)

    return make


def load_with_notes(folder: str, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    pair = load_pair(folder, device="cpu", target_precision="float32", on_progress=lines.append, **options)
    return pair, [line for line in lines if "the generation config" in line]


# ---- reading, and the notes ----


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 3, "min_length": 4, "begin_suppress_tokens": [0]},
        {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "guidance_scale": 1.5, "renormalize_logits": True},
        {"exponential_decay_length_penalty": [5, 1.1], "max_time": 2.5, "num_beams": 4},
        {"encoder_repetition_penalty": 1.2},
    ],
)
@pytest.mark.parametrize("sampling", ["default", "model"])
def test_settings_without_a_field_are_noted(
    folder_with: Callable[..., str], settings: dict[str, Any], sampling: str
) -> None:
    folder = folder_with(**settings)
    noted = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
    _, lines = load_with_notes(folder, sampling=sampling)
    assert lines[-1] == f"note: the generation config of {folder} sets {noted}, which pdevis does not apply"
    assert len(lines) == (2 if sampling == "model" else 1)
    if sampling == "model":
        assert lines[0] == f"note: the generation config of {folder} sets nothing that sampling = 'model' can use"


def test_settings_with_a_field_are_noted_until_they_are_used(folder_with: Callable[..., str]) -> None:
    folder = folder_with(**SAMPLED, repetition_penalty=1.1, stop_strings=["END"], typical_p=0.5)
    sets = "do_sample = True, temperature = 0.6, top_k = 20, top_p = 0.95, repetition_penalty = 1.1, "
    sets += "stop_strings = ['END']"
    ignored = f"note: the generation config of {folder} sets typical_p = 0.5, which pdevis does not apply"
    pair, lines = load_with_notes(folder)
    assert lines == [f"note: the generation config of {folder} sets {sets}, which --sampling model applies", ignored]
    assert pair.defaults == DecodeConfig()
    assert "sampling" not in pair.describe()
    pair, lines = load_with_notes(folder, sampling="model")
    assert lines == [f"using {sets} of the generation config of {folder}, except for settings that are given", ignored]
    values = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    assert pair.defaults == DecodeConfig(**values, stop=("END",))
    assert json.loads(json.dumps(pair.describe()))["sampling"] == {**values, "stop": ["END"]}


def test_sampling_that_generate_would_not_use_is_no_setting() -> None:
    config = transformers.GenerationConfig(temperature=0.6, top_p=0.5, min_p=0.1, typical_p=0.5, repetition_penalty=1.0)
    assert read_model_settings(config) == read_model_settings(None) == type(read_model_settings(None))()
    sampled = transformers.GenerationConfig(do_sample=True)
    assert read_model_settings(sampled).values == {"temperature": 1.0}, "transformers' default"


def test_lists_of_tokens_are_divided_into_what_has_a_field() -> None:
    config = transformers.GenerationConfig(
        suppress_tokens=[1, 2], bad_words_ids=[[5], [258], [6, 7]], sequence_bias=[[[3], -2.0], [[3, 4], 1.0]]
    )
    settings = read_model_settings(config, eos_ids=(258,))
    assert settings.values == {"suppress_tokens": (1, 2, 5), "logit_bias": {3: -2.0}}
    assert settings.unsupported == {"bad_words_ids": [[6, 7]], "sequence_bias": {(3, 4): 1.0}}
    assert settings.supported["bad_words_ids"] == [[5], [258]]
    assert settings.as_json()["logit_bias"] == {"3": -2.0}


def test_values_of_another_form_are_noted_and_not_applied() -> None:
    config = transformers.GenerationConfig()
    config.stop_strings, config.sequence_bias = 5, [1, 2]
    settings = read_model_settings(config)
    assert settings.values == {}
    assert settings.unsupported == {"stop_strings": 5, "sequence_bias": [1, 2]}
    long = read_model_settings(transformers.GenerationConfig(begin_suppress_tokens=list(range(99))))
    assert f"begin_suppress_tokens = {str(list(range(99)))[:60]}…, which" in long.notes("big", "default")[0]


def test_values_that_are_not_allowed_are_refused_on_request(folder_with: Callable[..., str]) -> None:
    folder = folder_with(suppress_tokens=[-1])
    with pytest.raises(ModelLoadError, match=rf"the generation config of {folder}: suppress_tokens = -1: must be"):
        load_pair(folder, device="cpu", sampling="model")
    load_pair(folder, device="cpu")
    with pytest.raises(ValueError, match="sampling = 'own': must be one of default, model"):
        load_pair(folder, device="cpu", sampling="own")


# ---- the text ----


def random_generation_config(number: int) -> dict[str, Any]:
    r = random.Random(number)
    eos = r.sample(range(264), r.choice([1, 30]))
    settings: dict[str, Any] = {"eos_token_id": eos}
    if r.random() < 0.6:
        settings["repetition_penalty"] = r.choice([0.8, 1.1, 1.7])
    if r.random() < 0.5:
        settings["suppress_tokens"] = r.sample(range(264), 40)
    if r.random() < 0.5:
        settings["bad_words_ids"] = [[token] for token in r.sample(range(264), 40)] + [[eos[0]]]
    if r.random() < 0.4:
        settings["sequence_bias"] = [[[token], r.uniform(-5, 5)] for token in r.sample(range(264), 30)]
    if r.random() < 0.4:
        settings["min_new_tokens"] = r.randrange(1, 20)
    return settings


@pytest.mark.parametrize("number", range(GREEDY_CASES))
def test_greedy_text_is_that_of_generate_with_the_same_generation_config(
    folder_with: Callable[..., str], tiny_folder: Callable[..., Path], number: int
) -> None:
    folder = folder_with(**random_generation_config(number))
    drafter = "self" if number % 2 else str(tiny_folder("qwen3", layers=3, seed=1))
    model = read_model(find_source(folder), torch.float32, torch.device("cpu"))
    pair, _ = load_with_notes(folder, drafter=drafter, sampling="model")
    for length in (2, 7):
        ids = [random.Random(number + length).randrange(256) for _ in range(length)]
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)
        made = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=24, pad_token_id=0)
        expected = made[0, length:].tolist()
        assert pair.generate(ids, max_new_tokens=24).ids == expected
        assert pair.generate(ids, max_new_tokens=24, method="target").ids == expected


def test_settings_that_are_given_take_precedence(folder_with: Callable[..., str]) -> None:
    pair, _ = load_with_notes(folder_with(**SAMPLED, repetition_penalty=1.7), sampling="model")
    penalised = pair.generate("Hi", max_new_tokens=20, temperature=0.0)
    assert penalised.ids == pair.generate("Hi", DecodeConfig(max_new_tokens=20, repetition_penalty=1.7)).ids
    assert penalised.ids != pair.generate("Hi", DecodeConfig(max_new_tokens=20)).ids, "a config is complete"
    sampled = pair.generate("Hi", max_new_tokens=20, seed=1)
    explicit = DecodeConfig(20, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.7, seed=1)
    assert sampled.ids == pair.generate("Hi", explicit).ids != penalised.ids


# ---- scripts ----


def one_shot(capsys: pytest.CaptureFixture[str], folder: str, *flags: str) -> dict[str, Any]:
    main = runpy.run_path(str(ROOT / "appInference.py"))["main"]
    argv = ["--target_model", folder, "--device", "cpu", "--target_precision", "float32", "--length", "20"]
    assert main([*argv, "--prompt", "Hi", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_chat_uses_them_and_its_flags_win(
    folder_with: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_with(**SAMPLED, repetition_penalty=1.7)
    plain, own = one_shot(capsys, folder), one_shot(capsys, folder, "--sampling", "model", "--seed", "3")
    assert (plain["config"]["temperature"], plain["config"]["repetition_penalty"]) == (0.0, 1.0)
    assert (own["config"]["temperature"], own["config"]["top_k"], own["config"]["repetition_penalty"]) == (0.6, 20, 1.7)
    assert own["config"]["sampling"] == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.7}
    given = one_shot(capsys, folder, "--sampling", "model", "--temperature", "0", "--repetition-penalty", "1")
    assert (given["config"]["temperature"], given["config"]["top_k"]) == (0.0, 20)
    assert given["ids"] == plain["ids"] != own["ids"]
    assert one_shot(capsys, folder, "--sampling", "default")["ids"] == plain["ids"]


def test_answers_of_a_chat_that_samples_are_not_compared(folder_with: Callable[..., str]) -> None:
    pair, _ = load_with_notes(folder_with(**SAMPLED), sampling="model")
    session = ChatSession(pair, pair.defaults)
    session.set_decode(max_new_tokens=4)
    finished = [event for event in session.answer("Hi") if isinstance(event, TurnFinished)]
    assert not finished[0].greedy


@pytest.fixture
def scripts_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Scripts]:
    """scripts_of(folder): the evaluation scripts with a model that drafts for itself, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda folder: Scripts(Path(folder), Path(folder), capsys)


def test_evaluations_use_and_record_them(folder_with: Callable[..., str], scripts_of: Callable[[str], Scripts]) -> None:
    scripts = scripts_of(folder_with(**SAMPLED, repetition_penalty=1.7))
    argv = ("--k", 1, "--gen_len", 8, "--methods", "target,speculative", "--no-progress", "--sampling", "model")
    assert scripts("mmlu", *argv, "--output", "a.json", "--top_k", 7)[0] == 0
    meta = read_meta(Path("a.json"))
    assert meta is not None
    used = {"temperature": 0.6, "top_k": 7, "top_p": 0.95, "repetition_penalty": 1.7}
    assert {name: meta["sampling"][name] for name in used} == used
    assert (meta["settings"]["sampling"], meta["settings"]["top_k"]) == ("model", 7)
    assert not {"temperature", "top_p", "repetition_penalty"} & meta["settings"].keys()
    assert meta["pair"]["sampling"]["top_k"] == 20
    assert "same_as_target" not in load(Path("a.json"))[0]["speculative"], "the answers are sampled"
    seed = meta["settings"]["seed"]
    flags = ("--temperature", 0.6, "--top_k", 7, "--top_p", 0.95, "--repetition_penalty", 1.7, "--seed", seed)
    assert scripts("mmlu", *argv[:-2], "--output", "b.json", *flags)[0] == 0
    ids = [load(Path(name))[0]["speculative"]["token_ids"] for name in ("a.json", "b.json")]
    assert ids[0] == ids[1]
    code, err = scripts("mmlu", *argv, "--output", "c.json", "--temperature", 0)
    assert code == 0
    assert "greedy check: 1 of 1" in err
    assert read_meta(Path("c.json"))["sampling"]["temperature"] == 0


def test_a_run_is_not_resumed_with_another_generation_config(
    folder_with: Callable[..., str], scripts_of: Callable[[str], Scripts], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(repetition_penalty=1.7)
    scripts = scripts_of(folder)
    argv = (
        "--k",
        2,
        "--gen_len",
        4,
        "--methods",
        "target",
        "--no-progress",
        "--sampling",
        "model",
        "--output",
        "o.json",
    )

    answer = ItemRunner.run

    def stop_at_second(self: Any, index: int, item: Any) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return answer(self, index, item)

    with monkeypatch.context() as patch:
        patch.setattr(ItemRunner, "run", stop_at_second)
        assert scripts("mmlu", *argv)[0] == 130
    folder_with(repetition_penalty=1.2)
    code, err = scripts("mmlu", *argv, "--resume")
    assert code == 2
    assert "sampling is" in err.splitlines()[-1]
    folder_with(repetition_penalty=1.7)
    assert scripts("mmlu", *argv, "--resume")[0] == 0
    assert read_meta(Path(OUT))["sampling"]["repetition_penalty"] == 1.7


def test_lm_eval_uses_them_unless_a_request_says_otherwise(folder_with: Callable[..., str]) -> None:
    folder = folder_with(**SAMPLED, repetition_penalty=1.7, stop_strings="END")
    adapter = model_class()(target=folder, device="cpu", sampling="model", max_gen_toks=9)
    free = read_request({"until": ["\n"]}, number=0, base=adapter.base)
    assert (free.temperature, free.top_k, free.top_p, free.max_new_tokens) == (0.6, 20, 0.95, 9)
    assert free.stop == ("END", "\n")
    greedy = read_request({"do_sample": False}, number=0, base=adapter.base)
    assert (greedy.greedy, greedy.repetition_penalty) == (True, 1.7)
    hot = read_request({"do_sample": True, "top_k": 5}, number=0, base=adapter.base)
    assert (hot.temperature, hot.top_k, hot.top_p) == (0.6, 5, 0.95)
    assert adapter.get_model_info()["pdevis"]["sampling"]["temperature"] == 0.6
    assert model_class()(target=folder, device="cpu").base.greedy
