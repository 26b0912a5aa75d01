"""Pieces of a text that add up to the tokenizer's text of all ids, and chat templates that fail or never end."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import CTRLTokenizer, PreTrainedTokenizerFast

import pdevis.text
from helpers.tiny_models import make_tokenizer
from pdevis.text import CONTEXT, INCOMPLETE, TextStream, decodes_locally, encode_prompt

SPECIAL = ("<unk>", "<s>", "</s>", "[TOOL_CALLS]")
BYTES = [f"<0x{number:02X}>" for number in range(256)]
WORDS = ["▁", "▁▁", "▁Hello", "▁world", "▁.", ".", "n't", "Hi", "x", "é", "▁é", "你", INCOMPLETE, " ", "\n", "▁<b>"]
PIECES = ["hello", "##s", "##", ".", "n't", "##ing", "'", "do", "é", "##你", ","]
SUFFIXED = ["hel", "lo</w>", "</w>", "world</w>", ".", ".</w>", "é</w>", "你"]


def wrap(tokenizer: Tokenizer, words: tuple[str, ...] = ("<added>", "▁added", " ")) -> PreTrainedTokenizerFast:
    """Add special tokens and ordinary ones to a tokenizer."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1])
    fast.add_special_tokens({"eos_token": SPECIAL[2], "additional_special_tokens": [SPECIAL[3]]})
    fast.add_tokens(list(words))
    return fast


def bpe(words: list[str], **options: Any) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[0], **options))


def byte_level(**options: Any) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = bpe([*alphabet, "Ġworld", "ĠHello", "ä½ł", "ðŁ", "ĻĤ", "ï¿½"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, **options)


def llama(legacy: bool) -> PreTrainedTokenizerFast:
    tokenizer = bpe([*BYTES, *WORDS], byte_fallback=True, fuse_unk=True)
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return wrap(tokenizer)


def with_decoder(decoder: Any, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    tokenizer = bpe([*BYTES, *words])
    if decoder is not None:
        tokenizer.decoder = decoder
    return wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *BYTES, *WORDS]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return wrap(tokenizer)


def word_piece(cleanup: bool) -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate([*SPECIAL, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=SPECIAL[0]))
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return wrap(tokenizer)


def gemma() -> PreTrainedTokenizerFast:
    return with_decoder(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


LOCAL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte fallback, legacy": lambda: llama(True),
    "byte fallback, new": lambda: llama(False),
    "byte fallback, no strip": gemma,
    "Metaspace, always": lambda: with_decoder(decoders.Metaspace(prepend_scheme="always")),
    "Metaspace, first": lambda: with_decoder(decoders.Metaspace(prepend_scheme="first")),
    "Metaspace, never": lambda: with_decoder(decoders.Metaspace(prepend_scheme="never")),
    "Unigram": unigram,
    "WordPiece": lambda: word_piece(False),
    "WordPiece, cleanup": lambda: word_piece(True),
    "suffix": lambda: with_decoder(decoders.BPEDecoder(), SUFFIXED),
    "no decoder": lambda: with_decoder(None),
}
NOT_LOCAL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "CTC": lambda: with_decoder(decoders.CTC(pad_token="x")),
    "Replace in the text": lambda: with_decoder(decoders.Sequence([decoders.Fuse(), decoders.Replace("xx", "y")])),
    "Metaspace of the text": lambda: with_decoder(decoders.Sequence([decoders.Fuse(), decoders.Metaspace()])),
}


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [stream.add(token, last=i == len(ids) - 1) for i, token in enumerate(ids)]


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def draw_ids(tokenizer: Any, random: random.Random) -> list[int]:
    """Draw ids with many special tokens, blanks, byte tokens in a row, and characters that are cut or broken."""
    names = tokenizer.get_vocab()
    special = [names[word] for word in SPECIAL]
    unknown = [len(names) + 3]
    characters = [
        [names.get(f"<0x{byte:02X}>", names.get(byte_letter)) for byte, byte_letter in zip(text.encode(), letters)]
        for text, letters in (("🙂", "ðŁĻĤ"), ("你", "ä½ł"), (INCOMPLETE, "ï¿½"))
    ]
    characters = [ids for ids in characters if None not in ids] or [[0]]
    ids: list[int] = []
    repeated = random.choice(list(names.values()))
    while len(ids) < random.choice([1, 3, 10, 60]):
        kind = random.random()
        if kind < 0.15:
            ids.append(random.choice(special + unknown))
        elif kind < 0.4:
            whole = random.choice(characters)
            ids += whole[: random.choice([1, 2, 4, 4, 4])]
        elif kind < 0.5:
            ids += [repeated] * random.choice([1, 2, 3 * CONTEXT])
        else:
            ids.append(random.choice(list(names.values())))
    return ids


@pytest.mark.parametrize("kind", LOCAL | NOT_LOCAL)
def test_pieces_add_up_to_the_text_of_all_ids(kind):
    tokenizer = (LOCAL | NOT_LOCAL)[kind]()
    generator = random.Random(kind)
    for _ in range(300):
        ids = draw_ids(tokenizer, generator)
        text, pieces = text_of(tokenizer, ids), pieces_of(tokenizer, ids)
        assert "".join(pieces) == text, tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("kind", LOCAL | NOT_LOCAL)
def test_tokenizers_that_need_the_whole_text_are_told_apart(kind):
    assert decodes_locally((LOCAL | NOT_LOCAL)[kind]()) == (kind in LOCAL)


@pytest.mark.parametrize("legacy", [True, False])
def test_word_after_a_special_token_keeps_its_space(legacy):
    tokenizer = llama(legacy)
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", "[TOOL_CALLS]", "[TOOL_CALLS]", "▁world", "</s>", "▁Hello"])
    assert pieces_of(tokenizer, ids) == ["Hello", "", "", " world", "", " Hello"]


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback, new"])
def test_no_piece_has_a_part_of_a_character(kind):
    tokenizer = LOCAL[kind]()
    text = "naïve 你好 🙂\n👩‍👩‍👧 done"
    names = [f"<0x{byte:02X}>" for byte in text.encode()]
    ids = tokenizer.convert_tokens_to_ids(names) if "fallback" in kind else tokenizer(text)["input_ids"]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    assert INCOMPLETE not in "".join(pieces)


def test_text_is_returned_as_soon_as_it_cannot_change():
    assert pieces_of(byte_level(), byte_level()("a🙂b")["input_ids"]) == ["a", "", "", "", "🙂", "b"]
    tokenizer = llama(False)
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", "<0x0A>", "▁world", ".", "<0xE4>"])
    assert pieces_of(tokenizer, ids) == ["Hello", "", "\n world", ".", INCOMPLETE]


@pytest.mark.parametrize("kind", LOCAL | NOT_LOCAL)
@pytest.mark.parametrize("word", ["▁", "<0x80>", "<0xF0>", "[TOOL_CALLS]", "▁Hello", "x", "Ģ"])
def test_work_per_token_is_bounded(kind, word, monkeypatch):
    tokenizer = (LOCAL | NOT_LOCAL)[kind]()
    ids = [tokenizer.get_vocab().get(word, 0)] * 1000
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **options: (decoded.append(len(ids)), decode(ids, **options))[1]
    )
    pieces = pieces_of(tokenizer, ids)
    assert sum(decoded) <= 3 * CONTEXT * len(ids)
    assert "".join(pieces) == decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_tokenizer_written_in_python_gives_its_text_at_the_end(tmp_path):
    (tmp_path / "vocab.json").write_text('{"hel@@": 0, "lo": 1, "world": 2, "<unk>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert pieces_of(tokenizer, [0, 1, 3, 2]) == ["", "", "", text_of(tokenizer, [0, 1, 3, 2])]


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
MACRO = "{% macro f(n) %}BODY{% endmacro %}"


def refusal(template: str) -> str:
    with pytest.raises(ValueError) as caught:
        encode_prompt(make_tokenizer(chat_template=template), "hi", chat=True, model="m")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOPS.replace("99999", "1000000000"), "Range too big"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ missing.key }}", "missing"),
        ("{{ 'x' * 1000000000000 }}", "MemoryError"),
        (MACRO.replace("BODY", "{{ f(n) }}") + "{{ f(1) }}", "recursion"),
        ("{{ 10 ** 10 ** 10 }}", "operator **"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_broken_chat_template_is_one_line(template, words):
    message = refusal(template)
    assert message.startswith("the tokenizer refuses this prompt: ")
    assert words in message


@pytest.mark.parametrize(
    "template",
    [
        LOOPS,
        LOOPS.replace("BODY", "{% if 'x' in messages %}x{% endif %}"),
        "{% set found = namespace(n=0) %}" + LOOPS.replace("BODY", "{% set found.n = found.n + 1 %}"),
        "{% for i in range(99999) %}{% for word in range(99999)|select('eq', '') %}{% endfor %}{% endfor %}",
        MACRO.replace("BODY", "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}") + "{{ f(60) }}",
        "{{ lipsum(n=100000) }}",
    ],
)
@pytest.mark.parametrize("in_thread", [False, True])
def test_endless_chat_template_is_one_line(template, in_thread, monkeypatch):
    monkeypatch.setattr(pdevis.text, "TEMPLATE_SECONDS", 0.3)
    before, messages = sys.gettrace(), []
    run = threading.Thread(target=lambda: messages.append(refusal(template)))
    if in_thread:
        run.start()
        run.join()
    else:
        run.run()
    assert messages == ["the tokenizer refuses this prompt: its chat template needs more than 0.3 s"]
    assert sys.gettrace() == before
