"""Bytes of weights as stored, and the process that measures memory."""

import json

import pytest
import torch

from pdevis import load_pair
from pdevis.benchmarks.peak_memory import main, measure_memory, resident_bytes, weight_bytes
from pdevis.config import DraftConfig
from pdevis.models.hf.hf_causal_lm import HFCausalLM


def parameters(model) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 2), ("packed", 4)])
def test_weights_count_in_their_own_format(tiny_folder, tiny_model, precision, size):
    pair = load_pair(str(tiny_folder("qwen2")), device="cpu", target_precision=precision)
    expected = size * parameters(tiny_model("qwen2"))
    assert weight_bytes([pair.target]) == pytest.approx(expected, rel=0.02)


def test_int8_weights_count_a_byte_and_a_scale_each_row(tiny_folder):
    pair = load_pair(str(tiny_folder("qwen2")), device="cpu", target_precision="int8")
    dense = load_pair(str(tiny_folder("qwen2")), device="cpu", target_precision="float32")
    embedding = 4 * pair.target.weights.embedding.numel()
    whole, small = weight_bytes([dense.target]) - embedding, weight_bytes([pair.target]) - embedding
    assert whole / 4 < small < whole / 3


def test_weights_inside_functions_count_and_circles_end():
    weight = torch.zeros(3, 4)
    circle = [weight]
    circle.append(circle)

    class Holder:
        __module__ = "pdevis.somewhere"

        def __init__(self):
            self.apply = lambda x: x @ weight
            self.apply.__module__ = "pdevis.somewhere"
            self.parts = circle

    assert weight_bytes([type("Model", (), {"weights": Holder()})()]) == 48


def test_what_target_and_drafter_share_counts_once(tiny_folder):
    pair = load_pair(str(tiny_folder("llama")), device="cpu", target_precision="float32", draft_precision="float32")
    assert weight_bytes([pair.target, pair.drafter]) == weight_bytes([pair.target])


def test_a_transformers_model_counts_its_parameters(tiny_model):
    model = tiny_model("qwen3_next", dtype=torch.float32)
    assert weight_bytes([HFCausalLM(model, "float32")]) >= 4 * parameters(model)


def test_resident_memory_is_at_most_its_peak():
    now, peak = resident_bytes()
    assert 0 < now <= peak


def test_the_report(tiny_folder, capsys):
    asked = {"target": str(tiny_folder("llama")), "device": "cpu", "draft": {"mode": "exact"}, "gamma": 2, "length": 4}
    assert main([json.dumps(asked)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] >= found["loaded_bytes"] > 0
    assert found["weight_bytes"]["both"] <= found["weight_bytes"]["target"] + found["weight_bytes"]["drafter"]


def test_a_process_that_fails_says_why():
    found = measure_memory({"target": "no/such/folder"}, draft=DraftConfig(), gamma=2, length=4)
    assert "code 2: error: " in found["left_out"]
    assert "no/such/folder" in found["left_out"]
