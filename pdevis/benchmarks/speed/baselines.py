"""The baselines of the speed comparison, decoders of other libraries: transformers in four ways, and llama.cpp.

All are greedy, ignore EOS, and write exactly the requested number of tokens. transformers runs the target (and the
drafter, its "assistant") in float32 on CPU and in bfloat16 elsewhere. A baseline that cannot run is left out with a
reason, never silently.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.speed.decoders import DecodeFunction, Decoder, DecoderSet

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

GENERATE = "transformers generate"
NAMES = {
    "generate": GENERATE,
    "assisted": "transformers assisted, defaults",
    "assisted-fixed": "transformers assisted, γ={gamma}",
    "lookup": "transformers prompt lookup",
    "llama.cpp": "llama.cpp, {file}",
}
TRANSFORMERS = ("generate", "assisted", "assisted-fixed", "lookup")
DRAFT_STEP = "draft-step"  # the drafter alone, whose steps are compared
SELF = "self"  # the drafter has the target's own weights
LOOKUP_TOKENS = 10
# Weight formats of pdevis that hold the same numbers as a transformers model in that dtype, up to rounding.
SAME_NUMBERS = {"float32": ("float32", "packed"), "bfloat16": ("bfloat16",)}


@dataclass
class Baselines(DecoderSet):
    """The baselines that can run, and the drafter as a transformers model, if it was loaded."""

    drafter: Any = None


@dataclass
class TransformersModels:
    """Target and drafter as transformers models of one dtype; None: not needed."""

    target: Any = None
    drafter: Any = None
    dtype: str = ""


def baseline_name(key: str, gamma: int, gguf: Path | None) -> str:
    """Return the name of a baseline in tables and results; `key` is one of `NAMES`."""
    return NAMES[key].format(gamma=gamma, file=gguf.name if gguf else "no file")


def unavailable(has_own_drafter: bool, gguf: Path | None) -> dict[str, str]:
    """Return the baselines that cannot run, as far as is known before anything is loaded: key -> reason.

    A run can be resumed only if its reasons are the same, so their wording is part of the file format.
    """
    reasons = {}
    if not has_own_drafter:
        reasons |= dict.fromkeys(("assisted", "assisted-fixed"), f"needs a drafter model of its own, not {SELF!r}")
    if gguf is None:
        reasons["llama.cpp"] = "no --gguf FILE"
    elif "llama_cpp" not in sys.modules and find_spec("llama_cpp") is None:
        reasons["llama.cpp"] = "llama-cpp-python is not installed"
    return reasons


def load_baselines(
    keys: Collection[str],
    pair: SpeculativePair,
    *,
    models: tuple[str, str],
    gamma: int,
    gguf: Path | None,
    context: int,
    on_progress: Callable[[str], None],
) -> Baselines:
    """Load what the baselines need.

    Args:
        keys: keys of `NAMES`, and "draft-step" for the drafter alone.
        pair: the pair of pdevis, already loaded: devices and weight formats are taken from it.
        models: names of target and drafter; the drafter may be "self".
        gamma: draft tokens per round of "assisted-fixed".
        gguf: the target's weights for llama.cpp.
        context: length of llama.cpp's context in tokens.
        on_progress: is called with a line before each model is loaded.
    """
    loaded = _load_models(keys, pair, models, on_progress)
    baselines = Baselines(drafter=loaded.drafter)
    for key in TRANSFORMERS:
        if key in keys:
            baselines.decoders.append(_transformers_decoder(key, pair, loaded, models[1], gamma))
    if "llama.cpp" in keys and gguf is not None:
        name = baseline_name("llama.cpp", gamma, gguf)
        on_progress(f"loading {gguf.name}, for llama.cpp")
        on_gpu = pair.target.device.type == "cuda"
        try:
            decode = llama_cpp_generate(gguf, context=context, vocabulary=len(pair.tokenizer), on_gpu=on_gpu)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            baselines.left_out[name] = f"{type(error).__name__}: {error}"
        else:
            note = "weights of its own: ids not compared"
            baselines.decoders.append(Decoder(name, decode, compared=False, note=note))
    return baselines


def _load_models(
    keys: Collection[str], pair: SpeculativePair, models: tuple[str, str], on_progress: Callable[[str], None]
) -> TransformersModels:
    """Load target and drafter under transformers, as far as the baselines need them."""
    wanted, loaded = set(keys), TransformersModels()
    own_drafter = models[1] != SELF
    if wanted & {*TRANSFORMERS, *([] if own_drafter else [DRAFT_STEP])}:
        on_progress("loading the target again, for transformers")
        loaded.target, loaded.dtype = load_transformers_target(models[0], pair.target.device)
    if own_drafter and wanted & {"assisted", "assisted-fixed", DRAFT_STEP}:
        on_progress("loading the drafter again, for transformers")
        loaded.drafter, _ = _read(models[1], pair.drafter.device)
    elif DRAFT_STEP in wanted:
        loaded.drafter = loaded.target
    return loaded


def _transformers_decoder(
    key: str, pair: SpeculativePair, loaded: TransformersModels, drafter_name: str, gamma: int
) -> Decoder:
    fixed_gamma = gamma if key == "assisted-fixed" else None
    if key == "generate":
        decode = transformers_generate(loaded.target)
    elif key == "lookup":
        decode = transformers_generate(loaded.target, prompt_lookup_num_tokens=LOOKUP_TOKENS)
    else:
        tokenizers = _tokenizer_arguments(pair, loaded, drafter_name)
        decode = transformers_assisted(loaded.target, loaded.drafter, tokenizers=tokenizers, gamma=fixed_gamma)
    precision = pair.describe().get("target_precision", "")
    compared = precision in SAME_NUMBERS[loaded.dtype]
    note = None if compared else f"{loaded.dtype} weights against {precision}: ids not compared"
    return Decoder(baseline_name(key, gamma, None), decode, gamma=fixed_gamma, compared=compared, note=note)


def transformers_generate(model: Any, **options: Any) -> DecodeFunction:
    """Return transformers' own greedy `generate` on a loaded model; `options` are further arguments of it."""
    import torch

    def decode(ids: list[int], length: int) -> tuple[list[int], None]:
        prompt = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=None,  # as for pdevis' decoders, EOS does not end the text
                pad_token_id=0,
                **options,
            )
        return output[0, len(ids) :].tolist(), None

    return decode


def transformers_assisted(
    target: Any, assistant: Any, *, tokenizers: dict[str, Any], gamma: int | None = None
) -> DecodeFunction:
    """Return transformers' assisted generation: with its defaults, or with exactly γ draft tokens per round.

    `generate` takes the number of draft tokens, its schedule and the confidence below which drafting stops from the
    assistant's generation config, and a schedule may write a new number back: each call gets a fresh copy.

    Args:
        target: a transformers model.
        assistant: the drafter, a transformers model.
        tokenizers: arguments of `generate` that it needs if the vocabularies differ in size.
        gamma: draft tokens per round; None: transformers' defaults.
    """
    config = copy.deepcopy(assistant.generation_config)
    config.eos_token_id = None
    if gamma is not None:
        config.num_assistant_tokens = gamma
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
    generate = transformers_generate(target, assistant_model=assistant, **tokenizers)

    def decode(ids: list[int], length: int) -> tuple[list[int], None]:
        assistant.generation_config = copy.deepcopy(config)
        return generate(ids, length)[0], None

    return decode


def llama_cpp_generate(file: Path, *, context: int, vocabulary: int, on_gpu: bool = False) -> DecodeFunction:
    """Return llama.cpp on a GGUF file, with as many threads as torch has.

    Args:
        file: the same model as the target, in any weight format.
        context: tokens of the longest prompt and its answer.
        vocabulary: number of tokens of the target's tokenizer, all of which the file must have.
        on_gpu: run all layers on the GPU.

    Raises:
        ValueError: for a file with a smaller vocabulary, or one that llama.cpp cannot read.
    """
    import torch

    threads = torch.get_num_threads()
    library = import_module("llama_cpp")
    model = library.Llama(
        model_path=str(file),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=-1 if on_gpu else 0,
        verbose=False,
    )
    if model.n_vocab() < vocabulary:
        message = f"{file.name} has {model.n_vocab()} tokens, the target's tokenizer {vocabulary}: another model"
        raise ValueError(message)

    def decode(ids: list[int], length: int) -> tuple[list[int], None]:
        model.reset()  # else it would not compute the prefix that the prompt shares with the last one
        new_ids: list[int] = []
        for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            new_ids.append(int(token))
            if len(new_ids) == length:
                break
        return new_ids, None

    return decode


def load_transformers_target(name: str, device: Any) -> tuple[Any, str]:
    """Load a target under transformers, without generation settings of its own; return it and its dtype's name."""
    model, dtype = _read(name, device)
    _reset_generation_config(model)
    return model, dtype


def _read(name: str, device: Any) -> tuple[Any, str]:
    """Read a transformers model in the dtype for its device; return it and the dtype's name."""
    import torch

    from pdevis.loading.checkpoint import find_source, read_model

    dtype = transformers_dtype(device)
    return read_model(find_source(name), getattr(torch, dtype), device), dtype


def transformers_dtype(device: Any) -> str:
    """Return the name of the dtype in which transformers runs on a device."""
    return "float32" if device.type == "cpu" else "bfloat16"


def _reset_generation_config(model: Any) -> None:
    """Remove the model's own generation settings: a repetition penalty, for example, changes greedy text too."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()


def _tokenizer_arguments(pair: SpeculativePair, loaded: TransformersModels, drafter_name: str) -> dict[str, Any]:
    """Return the arguments that assisted generation needs if the models' padded vocabularies differ in size."""
    from pdevis.loading.checkpoint import find_source, read_tokenizer

    target, drafter = (model.config.get_text_config().vocab_size for model in (loaded.target, loaded.drafter))
    if target == drafter:
        return {}
    return {"tokenizer": pair.tokenizer, "assistant_tokenizer": read_tokenizer(find_source(drafter_name))}
