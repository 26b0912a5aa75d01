"""Config, tokenizer and weights of a model name, with one line for every way in which loading can fail.

`find_source` finds a model and checks that it is available; the `read_…` functions then read from that source.

    source = find_source("qwen-0.6b")
    model = read_model(source, torch.bfloat16, torch.device("cuda:0"))
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers  # its classes are looked up when they are used: importing them takes seconds
from safetensors import SafetensorError
from transformers.utils import cached_file

from pdevis.loading.catalog import Source, resolve
from pdevis.loading.hub import explain_hub_error, from_pretrained, is_reachable, without_progress_bars
from pdevis.loading.weights.families import read_family_config
from pdevis.loading.weights.random_models import (
    byte_tokenizer,
    make_random_model,
    random_class_config,
    random_family_config,
)
from pdevis.loading.weights.safetensors_files import check_complete
from pdevis.util.files import parse_json, read_text
from pdevis.util.validation import ModelLoadError, causes, first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # names of the class that reads tokenizer.json
PROBE_TEXT = "Ein naïve café – 3,141 tokens?\n\tdef f(x): return x**2  # 你好 🙂"  # words, digits, blanks, code, bytes
MAX_DIFFERENCES_SHOWN = 3


@contextmanager
def translate_load_errors(source: Source, part: str) -> Iterator[None]:
    """Convert any error of the libraries to a `ModelLoadError` of one line that names this model.

    Args:
        source: the model.
        part: what is being read, for the message: "config", "tokenizer" or "weights".
    """
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(_describe_error(error, source, part)) from error


def _describe_error(error: Exception, source: Source, part: str) -> str:
    head = f"model = {source.name!r}: "
    chain = list(causes(error))
    text = " ".join(str(cause) for cause in chain)
    if any(isinstance(cause, (torch.OutOfMemoryError, MemoryError)) for cause in chain) or "t allocate memory" in text:
        return head + f"does not fit in memory ({first_line(error)}); use a smaller model or precision"
    if any(isinstance(cause, SafetensorError) for cause in chain):
        return head + f"a safetensors file is broken or truncated ({first_line(error)}); download it again"
    if "trust_remote_code" in text:
        return head + (
            f"its {part} needs Python code that comes with it, which is not run; use a model that transformers supports"
        )
    if any(isinstance(cause, pickle.UnpicklingError) for cause in chain):
        return head + (
            "a weight file in pickle format is broken or holds more than tensors, and is not loaded; use safetensors"
        )
    if source.kind == "hub" and (explanation := explain_hub_error(error, source.location)):
        return explanation
    if "Unrecognized" in text or "does not recognize this architecture" in text or "not supported" in text:
        return head + f"not a causal language model that transformers supports ({first_line(error)})"
    if source.gguf_file:
        return head + f"{source.gguf_file} is broken or truncated; download it again"
    return head + f"cannot read its {part} ({first_line(error)})"


def find_source(name: str, on_progress: Callable[[str], None] | None = None) -> Source:
    """Find the model of that name: download the embedded model, ask the hub whether it answers, or check a folder.

    Raises:
        ModelLoadError: if the name is unknown, the folder has no model, or the hub cannot provide it.
    """
    source = resolve(name)
    if source.kind == "random":
        return source
    if source.kind == "embedded":
        from pdevis.loading.embedded import prepare  # not at the top: it is also run with python -m

        return Source(source.name, "folder", str(prepare(on_progress)), local_only=True)
    if source.kind == "hub":
        return replace(source, local_only=not is_reachable(source.location))
    folder = Path(source.location)
    if source.gguf_file or (folder / "config.json").is_file():
        return replace(source, local_only=True)
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) != 1:
        several = f"has {len(files)} GGUF files ({', '.join(files)}): give the path of one of them"
        raise ModelLoadError(
            f"model = {source.name!r}: the folder {several if files else 'has no config.json and no GGUF file'}"
        )
    return replace(source, gguf_file=files[0], local_only=True)


# ---- GGUF files ----


def read_gguf_model(folder: str | Path, file: str, dtype: torch.dtype, **options: Any) -> Any:
    """Read the transformers model of the GGUF file folder/file, unpacked: every weight in `dtype`, in eval mode.

    Raises the errors of transformers for a file that is broken or of an unknown architecture.
    """
    if hasattr(transformers, "GgufConfig"):  # releases that can compute on packed blocks do so by default
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = from_pretrained(transformers.AutoModelForCausalLM, folder, gguf_file=file, dtype=dtype, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    # No weight is quantised any more, but the model still has these marks, and then refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return loaded


def read_gguf_tokenizer(folder: str | Path, file: str, **options: Any) -> Any:
    """Read the tokenizer of a GGUF file, including its chat template."""
    return from_pretrained(transformers.AutoTokenizer, folder, gguf_file=file, **options)


# ---- config, tokenizer and weights of a source ----


def read_config(source: Source) -> Any:
    """Read the config: of a supported family without transformers' class for it (weights/families.py), if possible.

    Raises:
        ModelLoadError: if it is broken or the architecture is unknown.
    """
    with translate_load_errors(source, "config"):
        return _read_family_config(source) or _read_class_config(source)


def read_class_config(source: Source) -> Any:
    """Read the config as an instance of transformers' class for it. Errors as for `read_config`."""
    with translate_load_errors(source, "config"):
        return _read_class_config(source)


def _read_family_config(source: Source) -> Any | None:
    """Return the config of a supported family; None if transformers' class has to read it."""
    if source.kind == "random":
        return random_family_config(source.location)
    file = None if source.gguf_file else _find_file(source, "config.json")
    return read_family_config(Path(file), source.location) if file else None


def _read_class_config(source: Source) -> Any:
    if source.kind == "random":
        return random_class_config(source.location)
    options: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    options["local_files_only"] = source.local_only
    return from_pretrained(transformers.AutoConfig, source.location, **options)


def read_tokenizer(source: Source) -> Any:
    """Read the tokenizer. Raises ModelLoadError if it is missing or broken."""
    with translate_load_errors(source, "tokenizer"):
        if source.kind == "random":
            return byte_tokenizer()
        if source.gguf_file:
            return read_gguf_tokenizer(source.location, source.gguf_file, local_files_only=True)
        # Without this check, some families would silently get an empty vocabulary.
        if source.kind == "folder" and not any((Path(source.location) / name).exists() for name in TOKENIZER_FILES):
            raise ModelLoadError(f"model = {source.name!r}: the folder has no tokenizer ({TOKENIZER_FILES[0]})")
        options: dict[str, Any] = {"local_files_only": source.local_only}
        name, config = _tokenizer_class(source), _read_family_config(source)
        if name in GENERIC_TOKENIZERS and config and config.model_type == "llama":
            # what AutoTokenizer comes to, without importing all families; for Qwen2 it does not trust this name
            return from_pretrained(transformers.PreTrainedTokenizerFast, source.location, **options)
        if name:  # else AutoTokenizer finds the class of the tokenizer by that of the config
            options["config"] = config
        return from_pretrained(transformers.AutoTokenizer, source.location, **options)


def _tokenizer_class(source: Source) -> str | None:
    """Return the name of the tokenizer's class in tokenizer_config.json; None if there is none."""
    with contextlib.suppress(OSError):
        if file := _find_file(source, "tokenizer_config.json"):
            return parse_json(read_text(file)).get("tokenizer_class")
    return None


def _find_file(source: Source, name: str) -> str | None:
    """Return the path of a file of a folder, or of the hub, which may download it; None if a folder lacks it."""
    return cached_file(source.location, name, local_files_only=source.local_only)


def read_model(source: Source, dtype: torch.dtype, device: torch.device, nf4: bool = False, **placement: Any) -> Any:
    """Read the transformers model in eval mode, all weights from its files.

    Args:
        source: from `find_source`.
        dtype: of the weights in memory.
        device: for the weights, which are not copied through the CPU's memory.
        nf4: 4-bit weights through bitsandbytes, computing in `dtype` (CUDA only).
        placement: options of `from_pretrained` for several devices, instead of `device` (model_builder.py).

    Raises:
        ModelLoadError: if files are broken, missing or incomplete, transformers does not know the architecture, the
            model does not fit in memory, or the hub stops answering.
    """
    options: dict[str, Any] = {"local_files_only": source.local_only, "output_loading_info": True}
    if placement:
        options |= placement
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    if nf4:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    with translate_load_errors(source, "weights"), without_progress_bars() if source.local_only else nullcontext():
        if source.kind == "random":
            if nf4:
                raise ModelLoadError(f"model = {source.name!r}: nf4 is not supported for random weights; use another")
            return make_random_model(source.location, dtype, device)
        if source.gguf_file and nf4:
            raise ModelLoadError(f"model = {source.name!r}: nf4 is not supported for GGUF files; use another precision")
        if source.gguf_file:
            model, report = read_gguf_model(source.location, source.gguf_file, dtype, **options)
        else:
            # of files in pickle format, which can hold code, only tensors are read
            options |= {"dtype": dtype, "weights_only": True}
            model, report = from_pretrained(transformers.AutoModelForCausalLM, source.location, **options)
        # transformers fills missing weights with random numbers and only warns.
        mismatched = sorted(str(key) for key in report["mismatched_keys"])
        check_complete(source, sorted(report["missing_keys"]) + mismatched)
    return model.eval()


def stop_ids(generation_config: Any, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the EOS ids of the generation config, else of the config, else of the tokenizer; may be empty."""
    for holder in (generation_config, config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)
    return ()


def check_same_tokenizer(target: Any, drafter: Any) -> None:
    """Check that every id is the same token for target and drafter. Padding of the models' vocabularies is ignored.

    Names of reserved tokens may differ (Llama 3.1 renamed some that Llama 3 reserved): no text contains them.

    Raises:
        ModelLoadError: if entries or the encoding of a probe text differ; the message names the differences.
    """
    target_tokens, draft_tokens = (
        {id: token for token, id in tokenizer.get_vocab().items()} for tokenizer in (target, drafter)
    )
    differences = []
    if len(target_tokens) != len(draft_tokens):
        differences.append(f"{len(target_tokens)} and {len(draft_tokens)} entries")
    all_ids = sorted(target_tokens.keys() | draft_tokens.keys())
    differing = [id for id in all_ids if _differ(target_tokens.get(id), draft_tokens.get(id))]
    differences += [
        f"id {id} is {_quote(target_tokens.get(id))} and {_quote(draft_tokens.get(id))}"
        for id in differing[:MAX_DIFFERENCES_SHOWN]
    ]
    if len(differing) > MAX_DIFFERENCES_SHOWN:
        differences.append(f"{len(differing) - MAX_DIFFERENCES_SHOWN} more ids differ")
    if not differing:
        target_ids, draft_ids = (
            tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"] for tokenizer in (target, drafter)
        )
        if target_ids != draft_ids:
            differences.append(f"a probe text becomes {target_ids[:8]}… and {draft_ids[:8]}…")
    if differences:
        raise ModelLoadError(
            f"target and drafter have different tokenizers (target and drafter): {'; '.join(differences)}"
        )


def _differ(target_token: str | None, draft_token: str | None) -> bool:
    if target_token is None or draft_token is None:
        return True
    return target_token != draft_token and "reserved_special_token" not in target_token + draft_token


def _quote(token: str | None) -> str:
    return "missing" if token is None else repr(token)
