"""tools/memory_table.py: parameters against transformers' models, caches against `KVCache`, tables against the docs."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers import ROOT
from pdevis.loading.catalog import CATALOG
from pdevis.models.kv_cache import KVCache


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("memory_table", ROOT / "tools" / "memory_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def transformers_parameters(size: Any) -> tuple[int, int]:
    """All parameters of the transformers model of these sizes, and those in its linear layers without the head."""
    changes = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_size,
        "intermediate_size": size.mlp,
        "tie_word_embeddings": size.tied,
    }
    arch = "qwen3" if size.qk_norm else "llama"
    if isinstance(size, tool.MoESize):
        arch = "qwen3_next" if isinstance(size, tool.HybridMoESize) else "qwen3_moe"
        changes |= {"num_experts": size.experts, "moe_intermediate_size": size.mlp}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **changes))
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    matrices = sum(module.weight.numel() for module in linear if module is not model.lm_head)
    return sum(weight.numel() for weight in model.parameters()), matrices


def test_every_model_of_the_catalog_is_in_the_table() -> None:
    assert set(tool.MODELS) == set(CATALOG)


@pytest.mark.parametrize("name", [name for name in tool.MODELS if name != "qwen-4b-I"])  # qwen-4b's sizes
def test_parameters_are_those_of_transformers(name: str) -> None:
    size = tool.MODELS[name]
    assert (size.parameters, size.linear) == transformers_parameters(size)


def test_parameters_are_the_published_numbers() -> None:
    published = {"llama-8b": 8_030_261_248, "llama-70b": 70_553_706_496, "qwen-8b": 8_190_735_360}
    assert {name: tool.MODELS[name].parameters for name in published} == published


def test_cache_bytes_are_those_of_a_kv_cache() -> None:
    size = tool.MODELS["smollm2-135m"]
    options = {"kv_heads": size.kv_heads, "head_dim": size.head_size, "dtype": torch.bfloat16}
    cache = KVCache([True] * size.layers, **options, device=torch.device("cpu"), max_tokens=8192)
    cache.reserve(700)
    assert sum(rows.nbytes for rows in cache.storage) == size.kv_bytes(700)
    assert tool.MODELS["qwen-80b-I"].attention_layers == 12


def test_moe_models_have_no_cpu_formats() -> None:
    size = tool.MODELS["qwen-30b-I"]
    assert size.weight_bytes("int8") is None
    assert 0.9 < size.weight_bytes("nf4") / size.weight_bytes("bfloat16") < 1


def test_smallest_gpu_that_fits() -> None:
    assert tool.gpus_for(14 * tool.GIB) == "1 of 16 GiB"
    assert tool.gpus_for(15 * tool.GIB) == "1 of 24 GiB"
    assert tool.gpus_for(150 * tool.GIB) == "3 of 80 GiB"


def test_the_tables_of_the_docs_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    text = (ROOT / "docs" / "quickstart-gpu.md").read_text(encoding="utf-8")
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in text


def test_unknown_pair_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--pairs", "qwen-8b:gpt"])
    assert stopped.value.code == 2
    assert "must be TARGET:DRAFTER" in capsys.readouterr().err
