"""A pair as a model of the lm-evaluation-harness: answers by the speculative decoder, likelihoods by the target.

`Adapter` has no base class here, since importing lm_eval changes the environment: `model_class` combines it with
lm_eval's `TemplateLM`, which splits context and continuation and chooses the chat template.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from tqdm import tqdm

from pdevis.config import METHODS, DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats
from pdevis.lm_eval.arguments import read_request, sort_settings
from pdevis.lm_eval.scoring import Scorer
from pdevis.lm_eval.stops import cut_answer
from pdevis.pair import SpeculativePair, load_pair
from pdevis.reasoning.split_reasoning import SplitText, opening_tag, unfinished_note
from pdevis.text import apply_chat_template
from pdevis.util.validation import check_one_of

MODEL_NAME = "pdevis"
DEFAULT_MAX_NEW_TOKENS = 256  # if neither the task nor the user sets a limit, as in lm_eval's own models
DEFAULT_SEED = 1234  # of sampled answers, as in lm_eval
LM_EVAL_DEFAULT_DEVICE = "cuda:0"  # passed by lm_eval if its user names no device, even without a GPU

SPEED = (  # of `DecodeStats`, sums over all answers, in lm_eval's result file
    "new_tokens",
    "prefill_seconds",
    "decode_seconds",
    "tokens_per_second",
    "drafted",
    "accepted",
    "acceptance_rate",
    "mean_accept_length",
)

log = logging.getLogger(__name__)


def register() -> None:
    """Register `--model pdevis` with lm_eval.

    Raises:
        ValueError: lm_eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm_eval is not installed: pip install lm-eval")
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=model_class())


@cache
def model_class() -> type:
    """Return `Adapter` as a subclass of lm_eval's `TemplateLM`."""
    from lm_eval.api.model import TemplateLM

    return type("PdevisLM", (Adapter, TemplateLM), {"__module__": __name__})


class Adapter:
    """A pair with lm_eval's `LM` interface.

    Args:
        target: catalog key, hub id or local folder.
        gamma: draft tokens per round, or "auto".
        method: decoder of the answers: speculative, target or drafter. Likelihoods are always the target's.
        max_gen_toks: limit on new tokens if a task sets none.
        max_length: context length in tokens; None: the target's.
        seed: added to the number of a request to seed its answer.
        enable_thinking: lm_eval's name for thinking = "on" or "off"; None: the template's own default.
        think_end_token: the text that ends each thought, for models whose tag is not known. Reasoning is left out of
            answers, and stop strings do not count in it; a thought that does not end is no answer.
        settings: further arguments of `load_pair` (drafter, device, …) and fields of `DraftConfig` (mode or draft_mode,
            threshold, window, …).

    Raises:
        ValueError: for an unknown argument, or a value that is not allowed.
    """

    def __init__(
        self,
        target: str | None = None,
        gamma: int | str = DecodeConfig.gamma,
        method: str = "speculative",
        max_gen_toks: int = DEFAULT_MAX_NEW_TOKENS,
        max_length: int | None = None,
        seed: int = DEFAULT_SEED,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not target:
            raise ValueError("--model_args: target=MODEL is missing")
        check_one_of("method", method, METHODS)
        self.method = method
        DecodeConfig(max_new_tokens=max_gen_toks, gamma=gamma, seed=seed)  # a mistake is found before the models load
        load_options, draft = sort_settings(settings)
        if enable_thinking is not None:
            if "thinking" in load_options:
                raise ValueError("--model_args: thinking and enable_thinking are the same setting: give one of them")
            load_options["thinking"] = "on" if enable_thinking else "off"
        if load_options.get("device") == LM_EVAL_DEFAULT_DEVICE and not torch.cuda.is_available():
            log.info("this machine has no %s: running on the CPU", LM_EVAL_DEFAULT_DEVICE)
            del load_options["device"]
        self.pair: SpeculativePair = load_pair(target, **load_options, draft=DraftConfig(**draft), on_progress=log.info)
        self.base = replace(self.pair.defaults, max_new_tokens=max_gen_toks, gamma=gamma, seed=seed)
        self.tokenizer = self.pair.tokenizer
        self._device = self.pair.target.device
        longest = self.pair.context_length
        self.max_length = longest if max_length is None else max_length
        if not 1 < self.max_length <= longest:
            raise ValueError(f"max_length = {max_length!r}: must be > 1 and <= {longest}, the target's context length")
        self.think_end_token = think_end_token
        self.scorer = Scorer(self.pair.target)
        self.total = DecodeStats(method=method)  # of all answers

    # ---- properties that lm_eval reads ----

    @property
    def eot_token_id(self) -> int:
        ids = (self.tokenizer.eos_token_id, *self.pair.eos_ids)
        return next(token for token in ids if token is not None)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return models, devices, formats, drafting settings and the speed so far, for lm_eval's result file."""
        about = self.pair.describe() | {"gamma": self.base.gamma, "method": self.method}
        return {MODEL_NAME: about | {"answers": {name: getattr(self.total, name) for name in SPEED}}}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return apply_chat_template(
            self.tokenizer,
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text, after the tokenizer's special tokens unless the text begins with them."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    # ---- likelihoods, by the target ----

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Score requests, each ((context, continuation) as text, context ids, continuation ids).

        Returns:
            (log-likelihood in nats, True if the continuation is greedy) per request.
        """
        self._clear_caches()
        results = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm, desc="likelihoods"):
            result = self._score(texts[1], context, continuation)
            self.cache_hook.add_partial("loglikelihood", texts, result)
            results.append(result)
        self._clear_caches()
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, predicting every token once, in windows."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        self._clear_caches()
        results = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm, desc="rolling likelihoods"):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            total = sum(self._score(text, *make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            results.append(total)
        self._clear_caches()
        return results

    def _score(self, text: str, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        if not continuation:
            raise ValueError(f"continuation {text[:40]!r} adds no tokens to its context: it cannot be scored")
        max_context = self.max_length + 1 - len(continuation)
        if max_context < 1:
            count = len(continuation)
            raise ValueError(f"continuation of {count} tokens: must be at most {self.max_length}, the context length")
        return self.scorer.score(context[-max_context:], continuation)

    def _clear_caches(self) -> None:
        """Empty the target's cache, which the scorer and the decoder use one after the other."""
        self.pair.reset()
        self.scorer.reset()

    # ---- answers, by the decoder ----

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each context, up to the first stop string or the limit on tokens."""
        results, unfinished = [], 0
        bar = tqdm([request.args for request in requests], disable=disable_tqdm, desc=f"answers ({self.method})")
        for number, (context, arguments) in enumerate(bar):
            split, stats = self._answer(context, dict(arguments), number=number)
            self.total = DecodeStats.sum((self.total, stats))
            self.cache_hook.add_partial("generate_until", (context, arguments), split.answer)
            results.append(split.answer)
            unfinished += not split.finished
            if self.total.tokens_per_second:
                bar.set_postfix_str(describe_speed(self.total), refresh=False)
        log.info("%s answers: %s", len(results), describe_speed(self.total))
        if unfinished:
            log.warning(unfinished_note(unfinished, len(results), limit="max_gen_toks", switch="thinking=off"))
        return results

    def _answer(self, context: str, arguments: dict[str, Any], number: int) -> tuple[SplitText, DecodeStats]:
        config = read_request(arguments, number=number, base=self.base, think_end=self.think_end_token)
        max_context = self.max_length - config.max_new_tokens
        if max_context < 1:
            raise ValueError(f"max_gen_toks = {config.max_new_tokens}: must be below the context of {self.max_length}")
        ids = self.tok_encode(context)
        if len(ids) > max_context:
            log.warning("a context of %d tokens is truncated to its last %d", len(ids), max_context)
        stream = self.pair.stream(ids[-max_context:], config, method=self.method)
        try:
            text = "".join(event.text for event in stream)
        finally:
            stream.close()
        split = cut_answer(text, config.stop, think_end=self.think_end_token, opening=opening_tag(context))
        return split, stream.stats


def describe_speed(stats: DecodeStats) -> str:
    """Return tokens per second and acceptance rate, both from sums over all answers."""
    speed = f"{stats.tokens_per_second or 0:.1f} tok/s"
    return speed + (f", acceptance {stats.acceptance_rate:.2f}" if stats.drafted else "")
