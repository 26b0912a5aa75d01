"""From a model name to config, tokenizer and weights, with every way it can fail told in one line.

`find_source` says where a model is and that it can be reached; the `read_…` functions then read from there.

    source = find_source("qwen-0.6b")
    model = read_model(source, torch.bfloat16, check_device("cuda"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from pdevis.loading.catalog import ModelLoadError, Source, resolve
from pdevis.loading.gguf import read_gguf_model, read_gguf_tokenizer
from pdevis.loading.hub import causes, explain, first_line, reach
from pdevis.loading.progress_bars import without_bars

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
PROBE = "Ein naïve café – 3,141 tokens?\n\tdef f(x): return x**2  # 你好 🙂"  # letters, digits, spaces, code, bytes
SHOWN = 3  # differing tokens named in a message


def check_device(name: str | None) -> torch.device:
    """The device of that name, with its index; None: cuda where there is one, else cpu.

    Raises:
        ModelLoadError: for a name that is no device, or a device that does not exist.
    """
    there = _devices()
    if name is None:
        return torch.device(there[1] if torch.cuda.is_available() else "cpu")
    text = "cuda:0" if name == "cuda" else name
    if text not in there:
        raise ModelLoadError(f"device = {name!r}: must be one of {', '.join(there)} (what this machine has)")
    return torch.device(text)


def _devices() -> list[str]:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda]


def find_source(name: str, on_progress: Callable[[str], None] | None = None) -> Source:
    """Where the model of that name is: fetches the embedded model, asks the hub whether it answers, checks a folder.

    Raises:
        ModelLoadError: for an unknown name, a folder without a model, or a hub that cannot serve it.
    """
    source = resolve(name)
    if source.kind == "embedded":
        from pdevis.loading.embedded import prepare  # not at the top: it is also run with python -m

        return Source(source.name, "folder", str(prepare(on_progress)), local_only=True)
    if source.kind == "hub":
        return replace(source, local_only=not reach(source.location))
    folder = Path(source.location)
    if source.gguf_file or (folder / "config.json").is_file():
        return replace(source, local_only=True)
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) != 1:
        several = f"has {len(files)} GGUF files ({', '.join(files)}): give the path of one of them"
        raise ModelLoadError(
            f"model = {source.name!r}: the folder {several if files else 'holds no config.json and no GGUF file'}"
        )
    return replace(source, gguf_file=files[0], local_only=True)


def read_config(source: Source) -> Any:
    """The model's transformers config. Raises ModelLoadError where it is broken or of an unknown architecture."""
    options = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    with translate_load_errors(source, "config"):
        return AutoConfig.from_pretrained(source.location, local_files_only=source.local_only, **options)


def read_tokenizer(source: Source) -> Any:
    """The model's tokenizer. Raises ModelLoadError where it is missing or broken."""
    with translate_load_errors(source, "tokenizer"):
        if source.gguf_file:
            return read_gguf_tokenizer(source.location, source.gguf_file, local_files_only=True)
        # Without this check, some families would silently get an empty vocabulary.
        if source.kind == "folder" and not any((Path(source.location) / name).exists() for name in TOKENIZER_FILES):
            raise ModelLoadError(f"model = {source.name!r}: the folder holds no tokenizer ({TOKENIZER_FILES[0]})")
        return AutoTokenizer.from_pretrained(source.location, local_files_only=source.local_only)


def read_model(source: Source, dtype: torch.dtype, device: torch.device, nf4: bool = False, **placement: Any) -> Any:
    """The transformers model in eval mode, all weights from its files.

    Args:
        source: from `find_source`.
        dtype: of the weights in memory.
        device: where the weights go, without a detour through the CPU's memory.
        nf4: 4-bit weights through bitsandbytes, computing in `dtype` (CUDA only).
        placement: options of `from_pretrained` for several devices, instead of `device` (spread.py).

    Raises:
        ModelLoadError: for files that are broken, missing or incomplete, an architecture that transformers does not
            know, a model that does not fit in memory, or a hub that stops answering.
    """
    options: dict[str, Any] = {"local_files_only": source.local_only, "output_loading_info": True}
    if placement:
        options |= placement
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    if nf4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    with translate_load_errors(source, "weights"), without_bars() if source.local_only else nullcontext():
        if source.gguf_file and nf4:
            raise ModelLoadError(f"model = {source.name!r}: nf4 is not for GGUF files; take another precision")
        if source.gguf_file:
            model, report = read_gguf_model(source.location, source.gguf_file, dtype, **options)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, **options)
        # transformers fills missing weights with random numbers and only warns.
        lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if lacking:
            raise ModelLoadError(
                f"model = {source.name!r}: its files lack {len(lacking)} weights that the config asks for, "
                f"{lacking[0]} first; download the model again"
            )
    return model.eval()


def stop_ids(generation_config: Any, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a text: of the generation config, else of the config, else of the tokenizer; may be empty."""
    for holder in (generation_config, config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)
    return ()


def check_same_tokenizer(target: Any, drafter: Any) -> None:
    """Make sure that an id means the same text to target and drafter. Padded vocabularies of the models do not matter.

    Names of reserved tokens may differ (Llama 3 has put some of them to use from 3.1 on): nothing is written with them.

    Raises:
        ModelLoadError: where entries or the encoding of a probe text differ, saying which.
    """
    ours, theirs = ({id: token for token, id in each.get_vocab().items()} for each in (target, drafter))
    found = []
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} and {len(theirs)} entries")
    unlike = [i for i in sorted(ours.keys() | theirs.keys()) if _differ(ours.get(i), theirs.get(i))]
    found += [f"id {i} is {_quote(ours.get(i))} and {_quote(theirs.get(i))}" for i in unlike[:SHOWN]]
    if len(unlike) > SHOWN:
        found.append(f"{len(unlike) - SHOWN} more ids differ")
    if not unlike:
        encoded = [each(PROBE, add_special_tokens=False)["input_ids"] for each in (target, drafter)]
        if encoded[0] != encoded[1]:
            found.append(f"a probe text becomes {encoded[0][:8]}… and {encoded[1][:8]}…")
    if found:
        raise ModelLoadError(f"target and drafter have different tokenizers (target and drafter): {'; '.join(found)}")


def _differ(ours: str | None, theirs: str | None) -> bool:
    if ours is None or theirs is None:
        return True
    return ours != theirs and "reserved_special_token" not in ours + theirs


def _quote(token: str | None) -> str:
    return "missing" if token is None else repr(token)


@contextmanager
def translate_load_errors(source: Source, part: str) -> Iterator[None]:
    """Turn any error of the libraries into one line about this model."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(_tell(error, source, part)) from error


def _tell(error: Exception, source: Source, part: str) -> str:
    head = f"model = {source.name!r}: "
    chain = list(causes(error))
    text = " ".join(str(link) for link in chain)
    if any(isinstance(link, (torch.OutOfMemoryError, MemoryError)) for link in chain) or "t allocate memory" in text:
        return head + f"does not fit in memory ({first_line(error)}); take a smaller model or precision"
    if any(isinstance(link, SafetensorError) for link in chain):
        return head + f"a safetensors file is broken or cut short ({first_line(error)}); download it again"
    if source.kind == "hub" and (known := explain(error, source.location)):
        return known
    if "Unrecognized" in text or "does not recognize this architecture" in text or "not supported" in text:
        return head + f"not a causal language model that transformers supports ({first_line(error)})"
    if source.gguf_file:
        return head + f"{source.gguf_file} is broken or cut short; download it again"
    return head + f"cannot read its {part} ({first_line(error)})"
