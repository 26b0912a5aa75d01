"""Logits processors: penalties, biases, forbidden tokens, a least length, as transformers' `generate` applies them.

A processor is a function of the ids before a position and of its logits. Target and drafter apply the same ones at
every position of a draft, so decoding stays lossless: greedy text is what the target alone writes under these
processors, and sampled text has the distribution of the processed logits. A processor must not keep anything between
calls: positions are tried and dropped again.

Shapes: N = tokens before a position, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


class PerDevice:
    """A processor of transformers that keeps tensors: one copy for each device, since target and drafter may differ.

    Args:
        make: returns the processor for a device; picklable, for a drafter in other processes.

    Raises:
        ValueError, TypeError: transformers refuses the values.
    """

    def __init__(self, make: Callable[[torch.device], Any]) -> None:
        self._make = make
        self._made = {torch.device("cpu"): make(torch.device("cpu"))}

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        device = logits.device
        if device not in self._made:
            self._made[device] = self._make(device)
        return self._made[device](ids, logits)

    def __reduce__(self) -> tuple[Any, ...]:
        return PerDevice, (self._make,)


def _logit_bias(biases: dict[tuple[int, ...], float], device: torch.device) -> Any:
    """Return transformers' processor, which keeps tensors of the first device on which it is called."""
    from transformers.generation.logits_process import SequenceBiasLogitsProcessor

    return SequenceBiasLogitsProcessor(dict(biases))


def _min_new_tokens(prompt_tokens: int, count: int, eos_ids: list[int], device: torch.device) -> Any:
    from transformers.generation.logits_process import MinNewTokensLengthLogitsProcessor

    return MinNewTokensLengthLogitsProcessor(prompt_tokens, count, eos_ids, device)


def make_processors(config: DecodeConfig, *, prompt_tokens: int) -> tuple[LogitsProcessor, ...]:
    """Return the processors that the settings ask for, in the order of transformers' `generate`, then the user's own.

    Args:
        config: with `eos_ids` set.
        prompt_tokens: length of the prompt.

    Raises:
        ValueError: a value that transformers refuses.
    """
    from transformers.generation import logits_process as hf  # most generations need none of it

    made: list[Any] = []
    try:
        if config.logit_bias:
            biases = {(token,): float(bias) for token, bias in config.logit_bias.items()}
            made.append(PerDevice(partial(_logit_bias, biases)))
        if config.repetition_penalty != 1:
            made.append(hf.RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty)))
        if config.presence_penalty or config.frequency_penalty:
            made.append(OccurrencePenalty(config.presence_penalty, config.frequency_penalty, prompt_tokens))
        if config.min_new_tokens and config.eos_ids:
            least = partial(_min_new_tokens, prompt_tokens, config.min_new_tokens, list(config.eos_ids))
            made.append(PerDevice(least))
        if config.suppress_tokens:
            made.append(hf.SuppressTokensLogitsProcessor(list(config.suppress_tokens)))  # moves its ids to the logits
    except (ValueError, TypeError) as error:
        raise ValueError(f"logits processors: {first_line(error)}") from error
    return (*made, *config.processors)
