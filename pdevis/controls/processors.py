"""Logits processors: penalties, biases, forbidden tokens, a least length, as transformers' `generate` applies them.

A processor is a function of the ids before a position and of its logits. Target and drafter apply the same ones at
every position of a draft, so decoding stays lossless: greedy text is what the target alone writes under these
processors, and sampled text has the distribution of the processed logits. A processor must not keep anything between
calls: positions are tried and dropped again.

Shapes: N = tokens before a position, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pdevis.config import DecodeConfig
from pdevis.util.validation import first_line

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # ids [1, N], logits [1, V] -> logits [1, V]


class OccurrencePenalty:
    """Subtract from the logit of each token that the text has: once `presence`, and `frequency` per occurrence.

    These are the penalties of OpenAI's API; they do not count the prompt, unlike transformers' repetition penalty.

    Args:
        presence, frequency: negative values encourage repetition.
        prompt_tokens: ids at the beginning that are not counted.
    """

    def __init__(self, presence: float, frequency: float, prompt_tokens: int) -> None:
        self.presence, self.frequency, self.prompt_tokens = presence, frequency, prompt_tokens

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        new = ids[:, self.prompt_tokens :]
        counts = torch.zeros_like(logits).scatter_add_(1, new, torch.ones_like(new, dtype=logits.dtype))
        return logits - self.frequency * counts - self.presence * (counts > 0)


def make_processors(config: DecodeConfig, *, prompt_tokens: int, device: torch.device) -> tuple[LogitsProcessor, ...]:
    """Return the processors that the settings ask for, in the order of transformers' `generate`, then the user's own.

    Args:
        config: with `eos_ids` set.
        prompt_tokens: length of the prompt.
        device: of the logits.

    Raises:
        ValueError: a value that transformers refuses.
    """
    from transformers.generation import logits_process as hf  # most generations need none of it

    made: list[Any] = []
    try:
        if config.logit_bias:
            made.append(
                hf.SequenceBiasLogitsProcessor({(token,): float(bias) for token, bias in config.logit_bias.items()})
            )
        if config.repetition_penalty != 1:
            made.append(hf.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        if config.presence_penalty or config.frequency_penalty:
            made.append(OccurrencePenalty(config.presence_penalty, config.frequency_penalty, prompt_tokens))
        if config.min_new_tokens and config.eos_ids:
            eos_ids = list(config.eos_ids)
            made.append(hf.MinNewTokensLengthLogitsProcessor(prompt_tokens, config.min_new_tokens, eos_ids, device))
        if config.suppress_tokens:
            made.append(hf.SuppressTokensLogitsProcessor(list(config.suppress_tokens), device))
    except (ValueError, TypeError) as error:
        raise ValueError(f"logits processors: {first_line(error)}") from error
    return (*made, *config.processors)
