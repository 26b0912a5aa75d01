"""Compare decoding with transformers' `generate` on random tiny models of every architecture that can be built.

    python tools/fuzz_models.py --cases 2000 --seed 0      # findings; exit code 1 if there are any
    python tools/fuzz_models.py --table                    # how each architecture runs, as a Markdown table

A case is a random model (architecture, sizes, rotary scaling, sliding window, weights), a drafter, a prompt, a drafting
rule, γ, greedy decoding or sampling from the most probable token alone, an end token or none. Plain and speculative
decoding must both write what `generate` writes, or the model must be refused by name when it is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.gamma import AutoGamma, gamma_policy
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.model_builder import LoadSpec, make_causal_lm
from pdevis.models.hf.hf_causal_lm import REPLAY, SEVERAL, SINGLE
from pdevis.models.hf.length_switch import find_length_switch
from pdevis.models.stack import DecoderStack
from pdevis.util.argtypes import positive_int
from pdevis.util.validation import ModelLoadError

VOCAB, MAX_PARAMETERS = 160, 5_000_000
NEAR_TIE = 1e-3  # of the spread of the logits: rounding may swap two tokens that are closer
# Sizes of a tiny model, by the names that configs give them.
SIZES: dict[str, int] = (
    dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "hidden_dim", "embedding_size", "d_embed"), 64)
    | dict.fromkeys(("attention_hidden_size", "word_embed_proj_dim", "lru_width"), 64)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4)
    | dict.fromkeys(("encoder_attention_heads", "linear_num_value_heads", "num_experts", "num_local_experts"), 4)
    | dict.fromkeys(("n_routed_experts", "moe_num_experts", "num_key_value_heads"), 4)
    | dict.fromkeys(("num_kv_heads", "num_experts_per_tok", "moe_k", "linear_num_key_heads"), 2)
    | dict.fromkeys(("head_dim", "d_kv", "kv_lora_rank", "q_lora_rank", "v_head_dim", "mamba_d_head", "d_head"), 16)
    | dict.fromkeys(("mamba_head_dim", "mamba_chunk_size", "chunk_size", "linear_key_head_dim"), 16)
    | dict.fromkeys(("linear_value_head_dim", "sliding_window", "attention_window_size"), 16)
    | dict.fromkeys(("hidden_size_per_layer_input",), 16)
    | dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 96)
    | dict.fromkeys(("ffn_hidden_size", "mlp_hidden_size", "d_inner"), 96)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_intermediate_size"), 32)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 512)
    | dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "state_size", "ssm_state_size", "mamba_d_state"), 8)
    | dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "rotary_dim"), 8)
    | dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1)
    | dict.fromkeys(("n_groups",), 1)
    | dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB)
    | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
)
DERIVED = ("layer_types", "layers_block_type")  # kinds of layers: some configs compute them from other settings
MLA = {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}  # head_dim: the rotary part
HEADS = {"head_dim": 16}  # computed by the classes' defaults from other sizes
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("ministral", "nemotron", "hunyuan_v1_dense", "hunyuan_v1_moe"), HEADS),
    "dots1": EXPERTS,
    "mamba2": {"expand": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "deepseek_v2": MLA | EXPERTS,
    **dict.fromkeys(("deepseek_v3", "glm4_moe_lite", "longcat_flash", "youtu", "minicpm3", "axk1"), MLA),
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "zamba2": {"mamba_ngroups": 1, "n_mamba_heads": 8, "attention_head_dim": 32},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "bert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "electra": {"is_decoder": True},
    "reformer": {"is_decoder": True},
    "xlm": {"causal": True},
}
ROPES: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "longrope", "original_max_position_embeddings": 32},
)


def tiny_config(architecture: str, **changes: Any) -> Any:
    """Return a config of this model type with few parameters; any error of its class if that cannot be built."""
    config_class = CONFIG_MAPPING[architecture]
    default = config_class()
    settings: dict[str, Any] = {}
    for name, size in SIZES.items():
        is_property = isinstance(getattr(config_class, name, None), property)
        value = None if is_property else getattr(default, name, None)
        if (isinstance(value, int) and not isinstance(value, bool)) or (
            name.endswith("_token_id") and hasattr(default, name)
        ):
            settings[name] = size
    is_derived = any(isinstance(getattr(config_class, name, None), property) for name in DERIVED)
    if not is_derived and getattr(default, "layer_types", None):
        kinds = list(dict.fromkeys(default.layer_types))
        settings["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        settings |= {name: len(settings["layer_types"]) for name in ("num_hidden_layers",) if name in settings}
    return config_class(**settings | SPECIAL.get(architecture, {}) | changes)


def tiny_model(config: Any, seed: int) -> Any:
    """Return a random model with weights so large that the most probable token varies; ValueError if it is too big."""
    with torch.device("meta"):
        size = sum(
            weight.numel() for weight in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters()
        )
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.mul_(3.0)
    return model.eval()


def load(model: Any, role: str = "target") -> Any:
    """Make a model ready to decode, as `load_pair` does. Raises ModelLoadError if it is refused."""
    spec = LoadSpec(
        model.config.model_type,
        role,
        source=None,
        config=model.config,
        device=torch.device("cpu"),
        precision="float32",
    )
    return make_causal_lm(model, spec, consume=False)


def kind_of(lm: Any) -> str:
    """Return how a loaded model runs."""
    return "own stack" if isinstance(lm, DecoderStack) else KINDS[lm.way]


KINDS = {SEVERAL: "through transformers", SINGLE: "one token per forward", REPLAY: "without a cache"}


@dataclass
class Case:
    """One random comparison.

    Args:
        architecture: model type.
        changes: settings of its config.
        seed: of target, drafter and prompt.
        prompt_tokens, new_tokens: lengths.
        own_drafter: the target's weights draft for themselves.
        draft, decode: settings of speculative decoding.
    """

    architecture: str
    changes: dict[str, Any]
    seed: int
    prompt_tokens: int
    new_tokens: int
    own_drafter: bool
    draft: DraftConfig
    decode: dict[str, Any] = field(default_factory=dict)


def random_rope(architecture: str, dice: random.Random) -> dict[str, Any]:
    """Return changes of a config to a random rotary scaling; none if the architecture has no plain settings of it."""
    default, rope = CONFIG_MAPPING[architecture](), dice.choice(ROPES)
    settings = getattr(default, "rope_parameters", None)
    if not rope or not isinstance(settings, dict) or any(isinstance(value, dict) for value in settings.values()):
        return {}
    changes: dict[str, Any] = {"rope_parameters": {"rope_theta": 10000.0} | rope}
    if rope["rope_type"] == "dynamic":
        changes["max_position_embeddings"] = 32
    if rope["rope_type"] == "longrope":
        factor = getattr(default, "partial_rotary_factor", None) or settings.get("partial_rotary_factor") or 1.0
        half = int(16 * factor) // 2
        changes["rope_parameters"] |= {"short_factor": [1.0] * half, "long_factor": [2.0 + i for i in range(half)]}
    return changes


def random_case(architecture: str, number: int, seed: int) -> Case:
    """Return case `number` of a run."""
    dice = random.Random(f"{seed} {number}")
    changes: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # a config without defaults: `run_case` counts it as not built
        changes = random_rope(architecture, dice)
    rule = dice.choice((("exact", "planned"), ("skip", "inline"), ("skip", "planned"), ("parallel", "planned")))
    sampled = dice.random() < 0.3
    return Case(
        architecture,
        changes,
        seed=dice.randrange(10**6),
        prompt_tokens=dice.choice((1, 2, 7, 20, 29, 32, 33, 45)),
        new_tokens=dice.randrange(1, 25),
        own_drafter=dice.random() < 0.6,
        draft=DraftConfig(mode=rule[0], check=rule[1], threshold=dice.choice((0.0, 0.5, 0.9))),
        decode={"gamma": dice.choice((1, 2, 3, 4, 6, "auto"))} | ({"temperature": 0.7, "top_k": 1} if sampled else {}),
    )


def run_case(case: Case) -> str:
    """Return "equal, …" with the way that the model runs in, "refused", "not built", "near-tie", or the finding."""
    try:
        with quiet():
            config = tiny_config(case.architecture, **case.changes)
            model = tiny_model(config, case.seed)
    except Exception:
        return "not built"
    dice = random.Random(case.seed)
    ids = [dice.randrange(3, VOCAB) for _ in range(case.prompt_tokens)]
    with quiet():
        try:
            target = load(model)
        except ModelLoadError as error:
            return "refused" if case.architecture in str(error) or type(model).__name__ in str(error) else str(error)
        expected = generated = generate(model, ids, case.new_tokens)
        expected = expected[: max(0, target.context_length - len(ids))]
        eos = dice.choice(expected) if dice.random() < 0.3 else None
        if eos is not None:
            expected = expected[: expected.index(eos) + 1]
        config = DecodeConfig(
            max_new_tokens=case.new_tokens, eos_ids=() if eos is None else (eos,), seed=case.seed, **case.decode
        )
        plain = [event.id for event in autoregressive(Verifier(target), ids, config=config, stats=DecodeStats())]
        drafter = (
            target.with_own_cache() if case.own_drafter else load(tiny_model(model.config, case.seed + 1), "drafter")
        )
        rule = case.draft if isinstance(drafter, DecoderStack) else DraftConfig(mode="exact")
        source, policy = Drafter(drafter, rule, target.vocab_size), gamma_policy(config, AutoGamma())
        made: list[list[int]] = [plain]
        for _ in range(2):  # the second generation reuses the prefix
            events = speculative(
                Verifier(target), source, prompt=ids, config=config, stats=DecodeStats(), policy=policy
            )
            made.append([event.id for event in events])
    for name, written in zip(("plain", "speculative", "speculative again"), made):
        if written != expected:
            return "near-tie" if is_near_tie(model, ids, generated, written) else f"{name}: {written} != {expected}"
    return f"equal, {kind_of(target)}"


def generate(model: Any, ids: list[int], count: int) -> list[int]:
    """Return what transformers' `generate` writes greedily after ids, end tokens ignored."""
    model.generation_config = GenerationConfig()  # without the processors that some classes set
    if switch := find_length_switch(model):
        switch.set_length(model, 0)  # the rotary embedding remembers longer texts
    made = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=2)
    return made[0, len(ids) :].tolist()


def is_near_tie(model: Any, ids: list[int], expected: list[int], written: list[int]) -> bool:
    """True if the first tokens that differ have logits that are equal up to rounding."""
    pairs = list(zip(expected, written))
    at = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        return False
    with torch.inference_mode(), quiet():
        logits = model(torch.tensor([ids + expected[:at]]), use_cache=False).logits[0, -1]
    gap = (logits[expected[at]] - logits[written[at]]).abs()
    return bool(gap <= NEAR_TIE * logits.std())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the library: random models make it warn."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def table(architectures: Sequence[str]) -> str:
    """Return a Markdown table: how tiny models of each architecture run."""
    groups: dict[str, list[str]] = {}
    for architecture in tqdm(architectures, file=sys.stderr, disable=None):
        try:
            with quiet():
                model = tiny_model(tiny_config(architecture), seed=1)
        except Exception:
            groups.setdefault("not tested: no tiny model can be built", []).append(architecture)
            continue
        try:
            with quiet():
                kind = kind_of(load(model))
        except ModelLoadError:
            kind = "refused"
        groups.setdefault(kind, []).append(architecture)
    order = ["own stack", *KINDS.values(), "refused", "not tested: no tiny model can be built"]
    rows = [f"| {kind} | {len(groups[kind])} | {', '.join(groups[kind])} |" for kind in order if kind in groups]
    return "\n".join(["| way | number | model types |", "|---|---|---|", *rows])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=positive_int, default=200, help="random cases (default: 200)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: 0)")
    parser.add_argument("--architectures", help="a comma list of model types (default: all)")
    parser.add_argument("--table", action="store_true", help="print how each architecture runs, and no cases")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    transformers.logging.set_verbosity_error()
    architectures = args.architectures.split(",") if args.architectures else list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if args.table:
        print(table(architectures))
        return 0
    outcomes: Counter[str] = Counter()
    findings = 0
    numbers = range(args.first, args.first + args.cases)
    for number in tqdm(numbers, file=sys.stderr, disable=None):
        case = random_case(architectures[number % len(architectures)], number, args.seed)
        outcome = run_case(case)
        known = outcome.startswith("equal") or outcome in ("refused", "not built", "near-tie")
        outcomes[outcome if known else "finding"] += 1
        if not known:
            findings += 1
            print(f"case {number}: {case}\n    {outcome}", flush=True)
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
