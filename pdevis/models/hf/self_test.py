"""Find the way in which a transformers model can be run exactly.

Speculative decoding needs what `generate` never asks of a model: several tokens at once after others, and a cache that
goes back. Some models of transformers cannot do it, and do not say so but write other text. So `generate` writes a few
tokens, and a script of forwards and rewinds over the same tokens must give the same logits.

    way = find_way(model)
    target = HFCausalLM(model, "float32", way)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from pdevis.models.hf.hf_causal_lm import REPLAY, WAYS, HFCausalLM, cache_argument
from pdevis.models.hf.length_switch import find_length_switch

PROMPT, NEW = 6, 8  # tokens of a test
MAX_BORDER = 80  # sliding windows and switches of frequencies that are longer are not crossed: it would take too long
MAX_TEST_ID = 4096
SEED = 20
# Largest relative distance of two rows of logits that count as equal up to rounding. In 16 bits the median over the
# rows counts: a mixture of experts may choose another expert for a token.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


class InexactModelError(ValueError):
    """A model that cannot be run exactly; the message says why."""


def find_way(model: Any) -> str:
    """Return the first of `WAYS` in which a transformers model in eval mode gives the logits of its own `generate`.

    Takes about 16 forwards of a few tokens for each way that is tried.

    Raises:
        InexactModelError: if there is none, or `generate` fails.
    """
    ways = list(WAYS if cache_argument(model) else (REPLAY,))
    for length in _prompt_lengths(model):
        ids, expected = _generate(model, length)
        while ways and not _follows(model, ways[0], ids, length, expected):
            del ways[0]
    if not ways:
        raise InexactModelError(
            "its forwards do not give the logits of its own generate(), with a cache or without, so no decoder can "
            "promise its text"
        )
    return ways[0]


def _prompt_lengths(model: Any) -> list[int]:
    """Lengths of the prompts to test with: a short one, and some before and beyond each border that can be crossed."""
    config, switch = model.config.get_text_config(decoder=True), find_length_switch(model)
    borders = {getattr(config, "sliding_window", None), switch.length if switch else None}
    lengths = {PROMPT}
    for border in borders:
        if isinstance(border, int) and PROMPT < border <= MAX_BORDER:
            lengths |= {border - 3, border + 3}
    return sorted(lengths)


def _generate(model: Any, length: int) -> tuple[list[int], Tensor]:
    """Let `generate` continue random ids; return all ids, and the logits [NEW, V] that each new token was chosen by."""
    vocab = model.config.get_text_config(decoder=True).vocab_size
    usable = torch.tensor(sorted(set(range(min(vocab, MAX_TEST_ID))) - _special_ids(model.config)))
    generator = torch.Generator().manual_seed(SEED)
    prompt = usable[torch.randint(len(usable), (length,), generator=generator)]
    device = model.get_input_embeddings().weight.device
    config = GenerationConfig(
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    if switch := find_length_switch(model):
        switch.set_length(model, 0)  # as after loading: an earlier test may have been longer
    try:
        made = model.generate(prompt[None].to(device), generation_config=config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InexactModelError(f"its own generate() fails: {str(error).splitlines()[0]}") from error
    return made.sequences[0].tolist(), torch.cat(made.logits).cpu()


def _special_ids(config: Any) -> set[int]:
    """Return the ids that a config gives a meaning of their own, such as that of an image."""
    values = [value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))]
    return {token for value in values for token in (value if isinstance(value, (list, tuple)) else [value])}


def _follows(model: Any, way: str, ids: list[int], length: int, expected: Tensor) -> bool:
    """Run the script in one way; return True if every logit is that of `generate`."""
    try:
        rows, logits = _run_script(HFCausalLM(model, "", way), ids, length)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a cache that cannot be cropped or continued says so in many ways
        return False
    return _equal_up_to_rounding(logits, expected[rows], model.dtype)


def _run_script(lm: HFCausalLM, ids: list[int], length: int) -> tuple[list[int], Tensor]:
    """Run the ids as a decoder would: prompt, single tokens, drafts that are accepted in part, another prompt.

    Returns:
        For each row of logits the number of the new token that it predicts, and the rows.
    """
    rows: list[int] = []
    logits: list[Tensor] = []

    def forward(count: int, rejected: int = 0) -> None:
        """Run the next tokens and a draft that is rejected, then rewind to the former."""
        known = lm.length
        wrong = [ids[(known + 3) % length]] * rejected
        made = lm.forward(torch.tensor(ids[known : known + count] + wrong, device=lm.device))
        rows.extend(range(known + 1 - length, known + count + 1 - length))
        logits.append(made[:count].cpu())
        lm.rewind(known + count)

    def prefill() -> None:
        lm.prefill(torch.tensor(ids[lm.length : length - 1], device=lm.device))

    prefill()
    forward(1)
    forward(2, rejected=2)
    lm.rewind(lm.length - 1)
    forward(2)
    forward(1, rejected=1)
    forward(3)
    lm.rewind(PROMPT // 2)  # a prompt with the same beginning
    prefill()
    forward(2)
    return rows, torch.cat(logits)


def _equal_up_to_rounding(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    actual, expected = actual.where(finite, 0), expected.where(finite, 0)
    distances = (actual - expected).norm(dim=-1) / (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    worst = distances.median() if dtype in (torch.float16, torch.bfloat16) else distances.max()
    return bool(worst <= TOLERANCES.get(dtype, max(TOLERANCES.values())))
