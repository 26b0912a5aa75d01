"""Other libraries' decoders as contestants of the speed comparison: transformers in four ways, llama.cpp.

All are greedy, ignore EOS, and write as many tokens as they are told to. transformers runs the target (and the
drafter, its "assistant") in float32 on CPU, in bfloat16 elsewhere. A peer that cannot take part is left out with a
reason, never silently.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.speed.decoders import Contestant, Run

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
LOOKUP_TOKENS = 10
# Weight formats of ours whose numbers a transformers model in that dtype has too, up to rounding.
SAME_NUMBERS = {"float32": ("float32", "packed"), "bfloat16": ("bfloat16",)}


@dataclass
class Peers:
    """The peers that take part, the reasons why others do not, and the drafter under transformers, if it is loaded."""

    contestants: list[Contestant] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    drafter: Any = None


def peer_name(key: str, gamma: int, gguf: Path | None) -> str:
    """The row's name of a peer."""
    return NAMES[key].format(gamma=gamma, file=gguf.name if gguf else "no file")


def unavailable(own_drafter: bool, gguf: Path | None) -> dict[str, str]:
    """Peers that cannot take part, for what is known before anything is loaded: key -> reason."""
    reasons = {}
    if own_drafter:
        reasons |= dict.fromkeys(("assisted", "assisted-fixed"), "needs a drafter model of its own, not 'self'")
    if gguf is None:
        reasons["llama.cpp"] = "no --gguf FILE"
    elif "llama_cpp" not in sys.modules and find_spec("llama_cpp") is None:
        reasons["llama.cpp"] = "llama-cpp-python is not installed"
    return reasons


def load_peers(
    wanted: Collection[str],
    pair: SpeculativePair,
    models: tuple[str, str],
    gamma: int,
    gguf: Path | None,
    context: int,
    say: Callable[[str], None],
) -> Peers:
    """Load what the wanted peers need.

    Args:
        wanted: keys of `NAMES`, and "draft-step" for the drafter alone.
        pair: ours, already loaded: devices and weight formats are taken from it.
        models: names of target and drafter; the drafter may be "self".
        gamma: of assisted generation with a fixed number of draft tokens.
        gguf: the target's weights for llama.cpp.
        context: tokens that llama.cpp must hold.
    """
    peers = Peers()
    own = models[1] == "self"
    if set(wanted) & {*TRANSFORMERS, *(["draft-step"] if own else [])}:
        say("loading the target again, for transformers")
        target, dtype = _read(models[0], pair.target.device)
        _plain_config(target)
    if not own and set(wanted) & {"assisted", "assisted-fixed", "draft-step"}:
        say("loading the drafter again, for transformers")
        peers.drafter, _ = _read(models[1], pair.drafter.device)
    elif own and "draft-step" in wanted:
        peers.drafter = target
    runs: dict[str, Callable[[], Run]] = {
        "generate": lambda: transformers_run(target),
        "assisted": lambda: assisted_run(target, peers.drafter, _tokenizers(pair, target, peers.drafter, models[1])),
        "assisted-fixed": lambda: assisted_run(
            target, peers.drafter, _tokenizers(pair, target, peers.drafter, models[1]), gamma
        ),
        "lookup": lambda: transformers_run(target, prompt_lookup_num_tokens=LOOKUP_TOKENS),
    }
    for key in TRANSFORMERS:
        if key in wanted:
            precision = pair.describe().get("target_precision", "")
            same = precision in SAME_NUMBERS[dtype]
            note = None if same else f"{dtype} weights against {precision}: ids not compared"
            fixed = gamma if key == "assisted-fixed" else None
            peers.contestants.append(Contestant(peer_name(key, gamma, gguf), runs[key](), "peer", fixed, same, note))
    if "llama.cpp" in wanted and gguf is not None:
        name = peer_name("llama.cpp", gamma, gguf)
        say(f"loading {gguf.name}, for llama.cpp")
        try:
            run = llama_cpp_run(gguf, context, len(pair.tokenizer), pair.target.device.type == "cuda")
            peers.contestants.append(Contestant(name, run, compared=False, note="weights of its own: ids not compared"))
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            peers.left_out[name] = f"{type(error).__name__}: {error}"
    return peers


def transformers_run(model: Any, **options: Any) -> Run:
    """transformers' own greedy `generate` on a loaded model; `options` are further arguments of it."""
    import torch

    def run(ids: list[int], length: int) -> tuple[list[int], None]:
        prompt = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=None,  # as for our decoders, EOS does not end the text
                pad_token_id=0,
                **options,
            )
        return out[0, len(ids) :].tolist(), None

    return run


def assisted_run(target: Any, assistant: Any, tokenizers: dict[str, Any], gamma: int | None = None) -> Run:
    """transformers' assisted generation: as it comes, or with exactly γ draft tokens a round.

    `generate` takes the number of draft tokens, its schedule and the confidence below which drafting stops from the
    assistant's generation config, and a schedule may write a new number back: each call gets a fresh copy.
    """
    defaults = copy.deepcopy(assistant.generation_config)
    defaults.eos_token_id = None
    if gamma is not None:
        defaults.num_assistant_tokens = gamma
        defaults.num_assistant_tokens_schedule = "constant"
        defaults.assistant_confidence_threshold = 0.0
    generate = transformers_run(target, assistant_model=assistant, **tokenizers)

    def run(ids: list[int], length: int) -> tuple[list[int], None]:
        assistant.generation_config = copy.deepcopy(defaults)
        return generate(ids, length)

    return run


def llama_cpp_run(file: Path, context: int, tokens: int, gpu: bool = False) -> Run:
    """llama.cpp on a GGUF file, with as many threads as torch has.

    Args:
        file: the same model as the target, in whatever weight format.
        context: tokens of the longest prompt and its answer.
        tokens: of the target's tokenizer. The file's vocabulary must hold them.

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
        n_gpu_layers=-1 if gpu else 0,
        verbose=False,
    )
    if model.n_vocab() < tokens:
        raise ValueError(f"{file.name} has {model.n_vocab()} tokens, the target's tokenizer {tokens}: another model")

    def run(ids: list[int], length: int) -> tuple[list[int], None]:
        model.reset()  # else the part of the prompt that it shares with the last one would be free
        made: list[int] = []
        for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            made.append(int(token))
            if len(made) == length:
                break
        return made, None

    return run


def _read(name: str, device: Any) -> tuple[Any, str]:
    import torch

    from pdevis.loading.checkpoint import find_source, read_model

    dtype = "float32" if device.type == "cpu" else "bfloat16"
    return read_model(find_source(name), getattr(torch, dtype), device), dtype


def _plain_config(model: Any) -> None:
    """Forget the model's own generation settings: a repetition penalty, say, changes greedy text too."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()


def _tokenizers(pair: SpeculativePair, target: Any, assistant: Any, name: str) -> dict[str, Any]:
    """What assisted generation asks for where the models' padded vocabularies differ in size."""
    from pdevis.loading.checkpoint import find_source, read_tokenizer

    sizes = [model.config.get_text_config().vocab_size for model in (target, assistant)]
    if sizes[0] == sizes[1]:
        return {}
    return {"tokenizer": pair.tokenizer, "assistant_tokenizer": read_tokenizer(find_source(name))}
