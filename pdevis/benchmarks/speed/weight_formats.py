"""What a weight format costs and what it changes: agreement with float32 on real text, and milliseconds for k tokens.

"Agreement" is the share of positions where the format has float32's argmax. On the text that the float32 model itself
writes behind the built-in prompts that is the acceptance rate that a drafter in this format can have at best; on texts
that people wrote it is what the format does to the model. Formats take turns in the timing.

Shapes: T = positions, V = vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from pdevis.config import DecodeConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.checkpoint import Source, read_model, read_tokenizer
from pdevis.loading.weight_reader import read_weights
from pdevis.models.layers import StackWeights
from pdevis.models.stack import DecoderStack
from pdevis.util.prompts import PROMPTS

PLAIN_INT8 = "int8 without rotation"
CONTEXT = 64  # tokens in the cache while timing


@dataclass
class FormatRow:
    """One format: agreement and mean KL divergence (nats) from float32, seconds of each forward by token count."""

    name: str
    agreement: float
    divergence: float
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def milliseconds(self, tokens: int) -> float:
        return 1000 * median(self.seconds[tokens])


def compare_formats(
    source: Source,
    names: Sequence[str],
    prompts: int,
    length: int,
    widths: Sequence[int],
    repeats: int,
    on_progress: Callable[[str], None],
    read: Sequence[str] | None = None,
) -> list[FormatRow]:
    """Measure each format of a model of a stack's family, on CPU.

    Args:
        names: weight formats, or "int8 without rotation".
        prompts, length: how many built-in prompts, and how many tokens of float32 text behind each.
        widths: token counts k to time.
        repeats: timings per format and k.
        read: texts to compare the formats on, at most `length` tokens of each; None: what float32 writes.
    """
    cpu = torch.device("cpu")
    model, tokenizer = read_model(source, torch.float32, cpu), read_tokenizer(source)
    reference = DecoderStack(read_weights(model, "float32", cpu))
    if read is None:
        on_progress("writing the text in float32")
        texts = [_write(reference, tokenizer, prompt, length) for prompt in PROMPTS[:prompts]]
    else:
        tokens = [list(tokenizer(text)["input_ids"])[: length + 1] for text in read[:prompts]]
        texts = [(ids[:1], ids[1:]) for ids in tokens]
    stacks, rows = {}, []
    for name in names:
        on_progress(f"reading {name}")
        stacks[name] = DecoderStack(_weights(model, name, cpu))
        same, divergence, count = 0, 0.0, 0
        for prompt, answer in texts:
            p, q = (_logits(stack, prompt, answer).log_softmax(-1) for stack in (reference, stacks[name]))
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            divergence += float((p.exp() * (p - q)).sum())
            count += len(answer)
        rows.append(FormatRow(name, same / count, divergence / count, {k: [] for k in widths}))
    on_progress("timing")
    words = [token for prompt, answer in texts for token in prompt + answer]
    ids = torch.tensor(words * (1 + (CONTEXT + max(widths)) // len(words)))
    for _ in range(repeats):
        for row in rows:
            stack = stacks[row.name]
            for k in widths:
                row.seconds[k].append(_time(stack, ids, k))
    return rows


def _weights(model: object, name: str, device: torch.device) -> StackWeights:
    if name == PLAIN_INT8:
        return read_weights(model, "int8", device, rotate=False)
    return read_weights(model, name, device)


def _write(stack: DecoderStack, tokenizer: object, prompt: str, length: int) -> tuple[list[int], list[int]]:
    message = [{"role": "user", "content": prompt}]
    ids = list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
    config = DecodeConfig(max_new_tokens=length, eos_ids=())
    return ids, [event.id for event in autoregressive(Verifier(stack), ids, config=config, stats=DecodeStats())]


@torch.inference_mode()
def _logits(stack: DecoderStack, prompt: list[int], answer: list[int]) -> Tensor:
    """Logits [T, V] from which the T tokens of the answer are chosen, in float64."""
    stack.rewind(0)
    if prompt[:-1]:
        stack.prefill(torch.tensor(prompt[:-1]))
    return stack.forward(torch.tensor([prompt[-1], *answer[:-1]])).double()


@torch.inference_mode()
def _time(stack: DecoderStack, ids: Tensor, tokens: int) -> float:
    stack.rewind(0)
    stack.prefill(ids[:CONTEXT])
    begin = time.perf_counter()
    stack.forward(ids[CONTEXT : CONTEXT + tokens])
    return time.perf_counter() - begin
