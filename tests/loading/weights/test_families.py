"""Configs, rotary frequencies and weights of the supported families, against transformers' own classes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from helpers.tiny_models import DENSE, LLAMA3_ROPE, make_config
from pdevis import DecodeConfig, DraftConfig, load_pair
from pdevis.loading.checkpoint import find_source, read_class_config, read_config, read_tokenizer
from pdevis.loading.weights.families import (
    FAMILIES,
    SIZES,
    FamilyConfig,
    FamilySpec,
    read_family_config,
    rotary_frequencies,
    unsupported_reason,
    weight_shapes,
)
from pdevis.util.validation import ModelLoadError

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
    LLAMA3_ROPE,
]
LEGACY_LLAMA3 = {"type" if key == "rope_type" else key: value for key, value in LLAMA3_ROPE.items()}
HUB_FORMS: dict[str, dict[str, Any]] = {  # ways in which files on the hub give the rotary embedding
    "theta": {"rope_theta": 1e6},
    "integer theta": {"rope_theta": 1000000, "rope_scaling": None},
    "null parameters": {"rope_theta": 1e6, "rope_parameters": None},
    "parameters": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    "parameters without type": {"rope_parameters": {"rope_theta": 1e6}},
    "theta apart": {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
    "llama3": {"rope_theta": 1e6, "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}},
    "legacy type": {"rope_theta": 1e6, "rope_scaling": LEGACY_LLAMA3},
    "partial": {"rope_theta": 1e6, "rope_scaling": None, "partial_rotary_factor": 0.5},
    "partial parameters": {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
}
OTHER_FORMS: dict[str, dict[str, Any]] = {  # forms that are left to the config class of the family
    "nothing": {},
    "null theta": {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}},
    "linear": {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "yarn": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "dynamic": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "nested": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
}
COMPARED = (
    *SIZES,
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
    "eos_token_id",
    "name_or_path",
)


def folder_with(values: dict[str, Any], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


def folder_in_form(form: str, model: Path, folder: Path) -> Path:
    """Copy a model to a folder, its rotary embedding in one of the forms of the hub."""
    copy = Path(shutil.copytree(model, folder / "model"))
    values = json.loads((copy / "config.json").read_text())
    del values["rope_parameters"]
    folder_with(values | HUB_FORMS[form], copy)
    return copy


def config_with_rope(family: str, rope: dict[str, Any]) -> Any:
    """A config of the family's class; skips the test if that class refuses this kind of rotary embedding."""
    try:
        return make_config(family, 3, rope_parameters=dict(rope))
    except (StrictDataclassError, KeyError) as error:
        pytest.skip(f"{family}: {error}")


def values_of(family: str, **changes: Any) -> dict[str, Any]:
    return json.loads(make_config(family, 3, **changes).to_json_string(use_diff=False)) | {"model_type": family}


def assert_equals_class_config(folder: Path) -> Any:
    """Return the config of a folder after comparing it with that of transformers' class, if that class accepts it."""
    source = find_source(str(folder))
    try:
        expected = read_class_config(source)
    except ModelLoadError as error:
        pytest.skip(str(error))
    config = read_config(source)
    whole = {"partial_rotary_factor": 1.0}  # which some classes write down
    assert whole | config.rope_parameters == whole | expected.rope_parameters
    assert config.model_type == expected.model_type
    for name in COMPARED:
        assert getattr(config, name) == getattr(expected, name), name
    assert unsupported_reason(config) == unsupported_reason(expected)
    assert weight_shapes(config) == weight_shapes(expected)
    return config


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_config_equals_that_of_transformers_class(family: str, rope: dict[str, Any], tmp_path: Path) -> None:
    config_with_rope(family, rope).save_pretrained(tmp_path)
    config = assert_equals_class_config(tmp_path)
    assert (type(config) is FamilyConfig) == (rope["rope_type"] in ("default", "llama3"))
    assert unsupported_reason(config) is None


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("form", [*HUB_FORMS, *OTHER_FORMS])
def test_config_in_the_forms_of_the_hub(family: str, form: str, tmp_path: Path) -> None:
    values = values_of(family)
    del values["rope_parameters"]
    values |= HUB_FORMS.get(form, OTHER_FORMS.get(form)) | {"torch_dtype": "bfloat16"}
    folder_with(values, tmp_path)
    config = assert_equals_class_config(tmp_path)
    assert (type(config) is FamilyConfig) == (form in HUB_FORMS)
    reasons = {"partial": "partial", "dynamic": "rope type", "nested": "a rotary embedding per kind"}
    reason = reasons.get(form.split()[0])
    assert (unsupported_reason(config) or "").startswith(reason) if reason else unsupported_reason(config) is None


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("form", ["theta", "llama3"])
def test_model_with_a_config_of_the_hub_loads_and_decodes(
    family: str, form: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folder_in_form(form, tiny_folder(family), tmp_path)
    pair = load_pair(str(folder), device="cpu", target_precision="float64", draft=DraftConfig(mode="skip"))
    config = DecodeConfig(max_new_tokens=8, eos_ids=())
    speculative, target = (pair.generate("Hello", config, method) for method in ("speculative", "target"))
    assert speculative.ids == target.ids


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": None}),
        ("llama", {"rms_norm_eps": None}),
        ("llama", {"hidden_size": 66}),
        ("qwen2", {"use_sliding_window": True}),
        ("qwen3", {"head_dim": None}),
        ("qwen3", {"tie_word_embeddings": None}),
        ("qwen2", {"per_layer_config": {"0": {"intermediate_size": 32}}}),
        ("qwen2", {"model_type": "qwen3_moe"}),
    ],
)
def test_any_other_config_is_left_to_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert read_family_config(folder_with(values_of(family), tmp_path), "x") is not None
    assert read_family_config(folder_with(values_of(family) | changes, tmp_path), "x") is None


@pytest.mark.parametrize("family", DENSE)
def test_settings_that_are_absent_have_the_values_of_transformers_class(family: str, tmp_path: Path) -> None:
    values = values_of(family)
    file = folder_with(values, tmp_path)
    assert read_family_config(file, "x") is not None
    for absent in values.keys() - {"model_type"}:
        folder_with({key: value for key, value in values.items() if key != absent}, tmp_path)
        if read_family_config(file, "x") is not None:  # else the class reads it
            assert_equals_class_config(tmp_path)


MISTRAL = FamilySpec(qkv_bias=False, output_bias=False)
SEED_OSS = FamilySpec(output_bias="attention_out_bias", mlp_bias="mlp_bias", slides=False, required=("head_dim",))


@pytest.mark.parametrize(
    ("family", "spec", "changes", "is_fast", "reason"),
    [
        ("mistral", MISTRAL, {"sliding_window": None}, True, None),
        ("mistral", MISTRAL, {"sliding_window": 16}, True, "sliding-window attention"),
        ("mistral", MISTRAL, {"sliding_window": 16, "use_sliding_window": False}, True, "sliding-window attention"),
        ("mistral", MISTRAL, {}, False, "sliding-window attention"),  # by the default of its class
        ("seed_oss", SEED_OSS, {"attention_out_bias": False}, True, None),
        ("seed_oss", SEED_OSS, {"attention_out_bias": True}, True, None),
        ("seed_oss", SEED_OSS, {}, False, None),
        ("seed_oss", SEED_OSS, {"attention_out_bias": False, "head_dim": None}, False, None),
    ],
)
def test_family_whose_class_has_other_defaults(
    family: str,
    spec: FamilySpec,
    changes: dict[str, Any],
    is_fast: bool,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(FAMILIES, family, spec)
    file = folder_with(values_of("llama") | {"model_type": family, "head_dim": 16} | changes, tmp_path)
    assert (read_family_config(file, "x") is not None) == is_fast
    assert unsupported_reason(assert_equals_class_config(tmp_path)) == reason


def test_layers_with_settings_of_their_own_run_through_transformers(tmp_path: Path) -> None:
    folder_with(values_of("llama") | {"per_layer_config": {"0": {"intermediate_size": 32}}}, tmp_path)
    config = read_config(find_source(str(tmp_path)))
    assert unsupported_reason(config) == "layers with settings of their own"


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("family", DENSE)
def test_rotary_frequencies_are_those_of_the_model(tiny_model: Callable[..., Any], family: str, rope: Any) -> None:
    config = config_with_rope(family, rope)
    rotary = type(tiny_model(family, dtype=torch.float32).model.rotary_emb)(config=config)
    frequencies, scale = rotary_frequencies(config)
    assert torch.equal(frequencies, rotary.inv_freq)
    assert scale == rotary.attention_scaling


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True, "tie_word_embeddings": False}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ],
)
def test_weight_shapes_are_those_of_the_model(tiny_model: Callable[..., Any], family: str, changes: Any) -> None:
    model = tiny_model(family, **changes)
    assert weight_shapes(model.config) == {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def test_tokenizer_equals_that_of_auto_tokenizer(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for family in DENSE:
        folder = Path(shutil.copytree(tiny_folder(family), tmp_path / family))
        found, expected = read_tokenizer(find_source(str(folder))), AutoTokenizer.from_pretrained(folder)
        assert type(found) is type(expected)
        assert found.get_vocab() == expected.get_vocab()
        assert found("Zoë 12")["input_ids"] == expected("Zoë 12")["input_ids"]
        assert found.chat_template == expected.chat_template


@pytest.mark.parametrize("form", ["parameters", "llama3"])
def test_a_pair_is_loaded_and_decodes_without_modelling_code(
    form: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folder_in_form(form, tiny_folder("llama"), tmp_path)
    code = f"""
import sys
from pdevis import DecodeConfig, load_pair
pair = load_pair({str(folder)!r}, device="cpu")
pair.generate("Hi", DecodeConfig(max_new_tokens=4))
slow = ("transformers.modeling_utils", "transformers.activations", "transformers.models.auto", "torch._dynamo", "sympy",
        "torch.distributed.tensor", "scipy", "accelerate", "matplotlib", "datasets", "lm_eval", "prompt_toolkit")
print([name for name in slow if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
    assert "\r" not in run.stderr
