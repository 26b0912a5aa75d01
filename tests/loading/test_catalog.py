"""Resolution of model names, and messages for wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdevis.loading.catalog import CATALOG, EMBEDDED, resolve
from pdevis.util.validation import ModelLoadError


@pytest.mark.parametrize("key", CATALOG)
def test_every_key_resolves_to_its_hub_id(key: str) -> None:
    source = resolve(key)
    assert source.location == CATALOG[key]
    assert source.kind == ("embedded" if key == EMBEDDED else "hub")


def test_all_documented_keys_exist() -> None:
    assert len(CATALOG) == 13
    assert CATALOG["llama-70b"] == "meta-llama/Meta-Llama-3-70B-Instruct"
    assert CATALOG["qwen-30b-I"] == "Qwen/Qwen3-30B-A3B-Instruct-2507"


def test_hub_id_folder_and_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("owner/some-model.v2").kind == "hub"
    assert resolve(tmp_path).location == str(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"")
    source = resolve(str(tmp_path / "m.gguf"))
    assert (source.kind, source.location, source.gguf_file) == ("folder", str(tmp_path), "m.gguf")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "qwen-8b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name").kind == "folder"
    assert resolve("qwen-8b").kind == "hub"
    assert resolve("./qwen-8b").kind == "folder"


@pytest.mark.parametrize(
    ("name", "nearest"), [("qwen-9b", "qwen-8b"), ("lama-1b", "llama-1b"), ("QWEN-30B-i", "qwen-30b-I")]
)
def test_wrong_key_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ModelLoadError, match=f"{name}.*did you mean .*{nearest}.*hub id, .* local folder") as caught:
        resolve(name)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_key_unlike_any_other_lists_the_catalog() -> None:
    with pytest.raises(ModelLoadError, match="xyzzy") as caught:
        resolve("xyzzy")
    assert all(key in str(caught.value) for key in CATALOG)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nothing", "../x/y", "~/nothing-here", "a/b/c", "x/y/", "no.gguf"]
)
def test_missing_folder(name: str) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        resolve(name)


@pytest.mark.parametrize("name", ["", "   ", "two words/x", "a b"])
def test_empty_and_malformed_names(name: str) -> None:
    with pytest.raises(ModelLoadError, match="model = "):
        resolve(name)


def test_file_that_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve(str(tmp_path / "x.txt"))
