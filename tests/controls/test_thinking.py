"""--thinking: the switch of a chat template, from the flag to the prompt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pdevis import load_pair
from pdevis.cli import Parser, add_draft_flags, add_model_flags, pair_arguments
from pdevis.controls.decode_flags import add_decode_flags
from pdevis.text import apply_chat_template

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def folder(tiny_folder, tiny_tokenizer, tmp_path) -> Path:
    """A tiny model with a template like Qwen3's."""
    shutil.copytree(tiny_folder("qwen3"), tmp_path / "model")
    tiny_tokenizer(chat_template=TEMPLATE).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("thinking", "ends"), [("on", False), ("off", True), ("auto", False)])
def test_prompts_follow_the_switch(folder, thinking, ends):
    pair = load_pair(str(folder), device="cpu", thinking=thinking)
    for prompt in ("Hi", [{"role": "user", "content": "Hi"}]):
        text = pair.tokenizer.decode(pair.encode(prompt))
        assert text.endswith("<think>\n\n</think>\n\n") == ends
    asked = apply_chat_template(
        pair.tokenizer,
        [{"role": "user", "content": "Hi"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert asked.endswith("</think>\n\n"), "an option of the call has priority"


def test_models_without_the_switch(tiny_folder):
    with pytest.raises(ValueError, match="thinking = 'off': this model's chat template has no switch for thoughts"):
        load_pair(str(tiny_folder("llama")), device="cpu", thinking="off")
    assert load_pair(str(tiny_folder("llama")), device="cpu").tokenizer is not None
    with pytest.raises(ValueError, match="thinking = 'maybe': must be one of auto, on, off"):
        load_pair(str(tiny_folder("llama")), device="cpu", thinking="maybe")


def test_the_flag_reaches_the_pair():
    parser = Parser()
    add_model_flags(parser)
    add_draft_flags(parser)
    add_decode_flags(parser)
    assert pair_arguments(parser.parse_args(["--thinking", "off"]))["thinking"] == "off"
    assert "thinking" not in pair_arguments(parser.parse_args([]))
