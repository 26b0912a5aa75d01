"""A pair as a model of the lm-evaluation-harness: answers by the speculative decoder, likelihoods by the target.

`Adapter` has no base class here, since importing lm_eval changes the environment: `register` joins it with lm_eval's
`TemplateLM`, which brings the splitting of context and continuation, and the choice of a chat template.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from tqdm import tqdm

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats
from pdevis.lm_eval.arguments import read_request, sort_settings
from pdevis.lm_eval.scoring import Scorer
from pdevis.lm_eval.stops import read_until
from pdevis.pair import METHODS, SpeculativePair, load_pair

NAME = "pdevis"
MAX_NEW_TOKENS = 256  # where neither the task nor the user sets a limit, as in lm_eval's own models
SEED = 1234  # of sampled answers, as lm_eval's own default
LM_EVAL_DEVICE = "cuda:0"  # what lm_eval asks for where its user names no device, whatever the machine has

log = logging.getLogger(__name__)


def register() -> None:
    """Make `--model pdevis` known to lm_eval.

    Raises:
        ValueError: where lm_eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm_eval is not installed: pip install lm-eval")
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=model_class())


@cache
def model_class() -> type:
    """`Adapter` as a subclass of lm_eval's `TemplateLM`."""
    from lm_eval.api.model import TemplateLM

    return type("PdevisLM", (Adapter, TemplateLM), {"__module__": __name__})


class Adapter:
    """A pair behind lm_eval's `LM` interface.

    Args:
        target: catalog key, hub id or local folder.
        gamma: draft tokens per round, or "auto".
        method: who answers: speculative, target or drafter. Likelihoods are the target's in any case.
        max_gen_toks: limit on new tokens where a task sets none.
        max_length: context in tokens; None: the target's.
        seed: where the seeds of sampled answers come from.
        enable_thinking: passed to the chat template; None: the template's own default.
        think_end_token: the text up to it is left out of answers, and stop strings count only behind it.
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
        max_gen_toks: int = MAX_NEW_TOKENS,
        max_length: int | None = None,
        seed: int = SEED,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not target:
            raise ValueError("--model_args: target=MODEL is missing")
        if method not in METHODS:
            raise ValueError(f"method = {method!r}: must be one of {', '.join(METHODS)}")
        self.method = method
        self.base = DecodeConfig(max_new_tokens=max_gen_toks, gamma=gamma, seed=seed)
        models, draft = sort_settings(settings)
        if models.get("device") == LM_EVAL_DEVICE and not torch.cuda.is_available():
            log.info("no %s on this machine: running on the CPU", LM_EVAL_DEVICE)
            del models["device"]
        self.pair: SpeculativePair = load_pair(target, **models, draft=DraftConfig(**draft), on_progress=log.info)
        self.tokenizer = self.pair.tokenizer
        self._device = self.pair.target.device
        longest = self.pair.context_length
        self.max_length = longest if max_length is None else max_length
        if not 1 < self.max_length <= longest:
            raise ValueError(
                f"max_length = {max_length!r}: must be above 1 and at most {longest}, the target's context"
            )
        self.thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.think_end_token = think_end_token
        self.scorer = Scorer(self.pair.target)

    # ---- what lm_eval asks about a model ----

    @property
    def eot_token_id(self) -> int:
        ids = (self.tokenizer.eos_token_id, *self.pair.eos_ids)
        return next(token for token in ids if token is not None)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """For lm_eval's result file: models, devices, formats and drafting settings."""
        return {NAME: self.pair.describe() | {"gamma": self.base.gamma, "method": self.method}}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.thinking,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; the tokenizer's own special tokens in front, unless the text begins with them."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    # ---- likelihoods, through the target ----

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of ((context, continuation) as text, context ids, continuation ids)."""
        self._take_target()
        results = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm, desc="likelihoods"):
            result = self._score(texts[1], context, continuation)
            self.cache_hook.add_partial("loglikelihood", texts, result)
            results.append(result)
        self._take_target()
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts: windows of the context's length, every token predicted once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        self._take_target()
        results = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm, desc="rolling likelihoods"):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            total = sum(self._score(text, *make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            results.append(total)
        self._take_target()
        return results

    def _score(self, text: str, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        if not continuation:
            raise ValueError(f"continuation {text[:40]!r} has no tokens of its own: it cannot be scored")
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            count = len(continuation)
            raise ValueError(f"continuation of {count} tokens: must be at most {self.max_length}, the context")
        return self.scorer.score(context[-room:], continuation)

    def _take_target(self) -> None:
        self.pair.reset()
        self.scorer.reset()

    # ---- answers, through the decoder ----

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text behind each context, up to the first stop string or the limit on tokens."""
        results = []
        total = DecodeStats(method=self.method)
        bar = tqdm([request.args for request in requests], disable=disable_tqdm, desc=f"answers ({self.method})")
        for number, (context, given) in enumerate(bar):
            text = self._answer(context, dict(given), number, total)
            self.cache_hook.add_partial("generate_until", (context, given), text)
            results.append(text)
            if total.tokens_per_second:
                bar.set_postfix_str(describe_speed(total), refresh=False)
        log.info("%s answers: %s", len(results), describe_speed(total))
        return results

    def _answer(self, context: str, given: dict[str, Any], number: int, total: DecodeStats) -> str:
        config, stops = read_request(given, number, self.base, self.pair.eos_ids, self.tokenizer)
        room = self.max_length - config.max_new_tokens
        if room < 1:
            raise ValueError(f"max_gen_toks = {config.max_new_tokens}: must be below the context of {self.max_length}")
        ids = self.tok_encode(context)
        if len(ids) > room:
            log.warning("a context of %d tokens is cut to its last %d", len(ids), room)
        stream = self.pair.stream(ids[-room:], config, self.method)
        try:
            text = read_until(stream, stops, self.think_end_token)
        finally:
            stream.close()
        for name in ("new_tokens", "drafted", "accepted", "prefill_seconds", "total_seconds"):
            setattr(total, name, getattr(total, name) + getattr(stream.stats, name))
        return text


def describe_speed(stats: DecodeStats) -> str:
    """Sums over all answers: tokens per second, and the share of drafted tokens that were accepted."""
    speed = f"{stats.tokens_per_second or 0:.1f} tok/s"
    return speed + (f", acceptance {stats.acceptance_rate:.2f}" if stats.drafted else "")
