"""Code that comes with a model: it is never run and never asked about, and a model that needs it is one line."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import ROOT
from pdevis import DecodeConfig, load_pair
from pdevis.loading.checkpoint import find_source, read_class_config, read_model, read_tokenizer
from pdevis.util.validation import ModelLoadError

LOADING_CALLS = ("from_pretrained", "from_config", "load_dataset", "load_custom_generate")
UNSAFE_CALLS = ("torch.load", "pickle.load", "torch.hub.load", "joblib.load", "np.load", "yaml.load")
LOADER = ("pdevis/loading/hub.py", "kind.from_pretrained")  # the one that all others go through
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\nraise SystemExit('the code of the model has run')\n"


@pytest.fixture
def folder(tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model's folder with code in every file that transformers may import, and a user who answers y to anything."""
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    marker = tmp_path / "the code has run"
    (folder / "custom_generate").mkdir()
    for name in ("configuration_mine", "modeling_mine", "tokenization_mine", "custom_generate/generate"):
        (folder / f"{name}.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    yield folder
    assert not marker.exists()
    assert sys.stdin.read() == "y\n" * 9


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


AUTO_CLASSES = {
    "AutoConfig": "configuration_mine.MyConfig",
    "AutoModelForCausalLM": "modeling_mine.MyModel",
    "AutoTokenizer": ["tokenization_mine.MyTokenizer", "tokenization_mine.MyTokenizer"],
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_every_loading_call_refuses_the_code_of_a_model():
    folders = [ROOT / name for name in ("pdevis", "Data", "evaluation", "summary", "tools")]
    found = []
    for file in [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]:
        for name, call in calls(file):
            last = name.split(".")[-1]
            assert name not in UNSAFE_CALLS, f"{file}: {name} runs what a file says"
            assert last != "input", f"{file}: {name} reads what the user types for the chat"
            if last in LOADING_CALLS and name != "from_pretrained":  # without a class: our function
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert keywords.get("trust_remote_code") == "False", f"{file}: {name}"
                found.append((file.relative_to(ROOT).as_posix(), name))
    assert [call for call in found if call[1].endswith(".from_pretrained")] == [LOADER]
    assert {name.split(".")[-1] for _, name in found} == {"from_pretrained", "from_config", "load_dataset"}


def test_model_of_an_unknown_type_that_brings_its_own_code(folder):
    change(folder / "config.json", model_type="mine", auto_map=AUTO_CLASSES)
    with pytest.raises(
        ModelLoadError, match=r"model = .*config needs Python code that comes with it, which is not run"
    ):
        load_pair(str(folder), device="cpu")


def test_code_of_another_repository(folder):
    change(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "other/repository--code.MyConfig"})
    with pytest.raises(ModelLoadError, match="Python code that comes with it"):
        read_class_config(find_source(str(folder)))


def test_model_class_of_a_known_config_is_not_replaced(folder):
    change(folder / "config.json", auto_map=AUTO_CLASSES)
    source = find_source(str(folder))
    assert type(read_class_config(source)).__name__ == "LlamaConfig"
    assert type(read_model(source, torch.float32, torch.device("cpu"))).__name__ == "LlamaForCausalLM"


def test_model_without_a_class_in_transformers_needs_its_own_code(folder):
    change(folder / "config.json", model_type="clip_text_model", auto_map={"AutoModelForCausalLM": "modeling_mine.My"})
    with pytest.raises(ModelLoadError, match="its weights needs Python code"):
        read_model(find_source(str(folder)), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("auto_map", [AUTO_CLASSES, AUTO_CLASSES["AutoTokenizer"]])
@pytest.mark.parametrize("model_type", ["llama", "mine"])
def test_tokenizer_that_brings_its_own_code(folder, auto_map, model_type):
    change(folder / "config.json", model_type=model_type)
    change(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="MyTokenizer")
    with pytest.raises(ModelLoadError, match="its tokenizer needs Python code that comes with it"):
        read_tokenizer(find_source(str(folder)))


def test_known_tokenizer_ignores_the_code_beside_it(folder):
    change(folder / "tokenizer_config.json", auto_map=AUTO_CLASSES)
    assert read_tokenizer(find_source(str(folder)))("hi")["input_ids"]


def test_own_way_to_generate_is_not_used(folder, tiny_folder):
    change(folder / "generation_config.json", custom_generate="custom_generate")
    config = DecodeConfig(max_new_tokens=4, eos_ids=())
    expected = load_pair(str(tiny_folder("llama")), device="cpu").generate([1, 2], config).ids
    assert load_pair(str(folder), device="cpu").generate([1, 2], config).ids == expected


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "old format", "raw pickle", "index"])
def test_pickled_weights_that_hold_code_are_not_loaded(folder, tmp_path, tiny_model, kind):
    weights, marker = dict(tiny_model("llama", dtype=torch.float32).state_dict()), tmp_path / "unpickled"
    (folder / "model.safetensors").unlink()
    file = folder / ("pytorch_model-00001-of-00001.bin" if kind == "index" else "pytorch_model.bin")
    if kind == "raw pickle":
        file.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save(weights | {"x": Payload(marker)}, file, _use_new_zipfile_serialization=kind != "old format")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, file.name)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ModelLoadError, match=r"pickle format is broken or holds more than tensors.*safetensors"
    ) as caught:
        load_pair(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    assert not marker.exists()


def test_pickled_weights_without_code_are_loaded(folder, tiny_folder, tiny_model):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama", dtype=torch.float32).state_dict(), folder / "pytorch_model.bin")
    config = DecodeConfig(max_new_tokens=4, eos_ids=())
    pairs = [load_pair(str(name), device="cpu") for name in (folder, tiny_folder("llama"))]
    assert pairs[0].generate([1, 2], config).ids == pairs[1].generate([1, 2], config).ids


@pytest.mark.parametrize("flags", [(), ("--prompt", "hi", "--json"), ("--manager",)])
def test_chat_asks_nothing_and_names_the_model(folder, flags):
    change(folder / "config.json", model_type="mine", auto_map=AUTO_CLASSES)
    command = [sys.executable, "appInference.py", "--target_model", str(folder), *flags]
    run = subprocess.run(command, input="y\nhello\n", cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: model = ")
    assert str(folder) in last
    assert "code that comes with it, which is not run" in last
