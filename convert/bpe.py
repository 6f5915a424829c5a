"""Byte-level BPE: from tokenizer.json, or from vocab.json and merges.txt.

Format of tokenizer.json: the ``tokenizers`` library (https://huggingface.co/docs/tokenizers);
of the older pair: GPT-2's (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from infer_os.native.text_cuts import read_cuts

from .added import added_notes
from .errors import FileFormatError, SourceError, UnsupportedError
from .normalizer import read_normalizer
from .plain_file import read_json, read_text
from .special import TokenizerFiles, read_added_token
from .vocabulary import MOST_TOKENS, AddedToken, GgufVocabulary, TokenType, padding_text

_LARGEST_VOCAB = 64 << 20
_LARGEST_MERGES = 64 << 20

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# tokenizers reads the inner brackets as a set within the set: "[" and "]" are not in it.
# llama.cpp spells the same set without them.
_BLOOM_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"

#: Patterns of a Split before ByteLevel, and llama.cpp's names for them.
_SPLITS = {_BLOOM_PATTERN: "bloom", _GPT2_PATTERN: "gpt-2"}

_CUTS_NOTE = (
    "vocabulary: text is cut before it is split; this program does so, other llama.cpp programs "
    "cut it in another way"
)

#: Tokenizer classes that split as GPT-2 does and add nothing; "" is the families' usual one.
_GPT2_CLASSES = ("", "GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer")


def from_tokenizer_json(
    path: Path, data: Mapping[str, Any], files: TokenizerFiles
) -> GgufVocabulary:
    """The vocabulary of a tokenizer.json whose model is BPE.

    Raises:
        FileFormatError: it is malformed.
        UnsupportedError: it does something that llama.cpp cannot express.
    """
    model = data["model"]
    for key in (
        "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout",
        "ignore_merges",
    ):  # fmt: skip
        if model.get(key):
            raise UnsupportedError(f"{path}: BPE with {key} has no counterpart in llama.cpp")
    entries = data.get("added_tokens") or []
    if not isinstance(entries, list):
        raise FileFormatError(f"{path}: added_tokens is not a list")
    added = [read_added_token(path, entry) for entry in entries]
    form, steps = read_normalizer(path, data.get("normalizer"))
    vocabulary = replace(
        _vocabulary(path, model["vocab"], added, files),
        merges=_merges(path, model.get("merges")),
        normalizer=form,
        steps=steps,
        prefix_space=_prefix_space(path, data.get("pre_tokenizer"), files),
    )
    pre, cuts = _pre_tokenizer(path, data.get("pre_tokenizer"))
    notes = (*vocabulary.notes, *((_CUTS_NOTE,) if cuts else ()))
    vocabulary = replace(vocabulary, pre=pre, cuts=cuts, notes=notes)
    return replace(vocabulary, notes=(*vocabulary.notes, *added_notes(path, vocabulary)))


def from_vocab_and_merges(path: Path, files: TokenizerFiles) -> GgufVocabulary:
    """The vocabulary of a folder with vocab.json (``path``) and merges.txt.

    Raises:
        SourceError: there is no merges.txt.
        FileFormatError: a file is malformed.
        UnsupportedError: the tokenizer's class does something that llama.cpp cannot express.
    """
    vocab = read_json(path, _LARGEST_VOCAB) or {}
    name = files.tokenizer_class.removesuffix("Fast")
    if name not in _GPT2_CLASSES:
        raise UnsupportedError(
            f"{path}: a vocabulary of the class {files.tokenizer_class!r}; supported are "
            f"{', '.join(filter(None, _GPT2_CLASSES))}"
        )
    merges_path = path.with_name("merges.txt")
    text = read_text(merges_path, _LARGEST_MERGES)
    if text is None:
        raise SourceError(f"{path}: there is no merges.txt next to it")
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and lines[0].startswith("#version"):
        del lines[0]
    # GPT-2's class uses this token if no file names one
    default = () if files.special_texts() else ("<|endoftext|>",)
    vocabulary = replace(
        _vocabulary(path, vocab, [], files, default),
        pre="gpt-2",
        merges=_merges(merges_path, [line for line in lines if line.strip()]),
        prefix_space=files.settings.get("add_prefix_space") is True,
    )
    return replace(vocabulary, notes=(*vocabulary.notes, *added_notes(path, vocabulary)))


def _prefix_space(path: Path, pre: Any, files: TokenizerFiles) -> bool:
    """Whether text between added tokens gets a space before it; the settings take precedence.

    Raises:
        UnsupportedError: ByteLevel would put a space before each part made by another step.
    """
    steps = _pre_steps(pre)
    last = steps[-1] if steps and isinstance(steps[-1], dict) else {}
    wanted = files.settings.get("add_prefix_space")
    if not isinstance(wanted, bool):
        wanted = last.get("type") == "ByteLevel" and last.get("add_prefix_space") is True
    if wanted and len(steps) > 1:
        names = " + ".join(str(step.get("type")) for step in steps if isinstance(step, dict))
        raise UnsupportedError(f"{path}: {names} with add_prefix_space cannot be expressed")
    return wanted


def _pre_steps(pre: Any) -> list[Any]:
    """The steps of a pre-tokenizer."""
    sequence = isinstance(pre, dict) and pre.get("type") == "Sequence"
    steps = pre.get("pretokenizers") if sequence else [pre]
    return steps if isinstance(steps, list) else []


def _vocabulary(
    path: Path,
    vocab: Mapping[str, Any],
    added: list[AddedToken],
    files: TokenizerFiles,
    default_special: Iterable[str] = (),
) -> GgufVocabulary:
    """Tokens and types, with the added and special tokens of this and the other files."""
    by_id: dict[int, tuple[str, TokenType]] = {}
    for text, number in vocab.items():
        if type(number) is not int or not 0 <= number < MOST_TOKENS or number in by_id:
            raise FileFormatError(f"{path}: the token {text!r} has the bad or repeated id {number}")
        by_id[number] = (text, TokenType.NORMAL)
    special = {*files.special_texts(), *default_special}
    known = {token.text: token for token in (*files.added_tokens(), *added)}
    for text in special:
        if text in known:
            known[text] = replace(known[text], special=True)
        elif text in vocab:
            known[text] = AddedToken(vocab[text], text, special=True)
    for token in known.values():
        if by_id.get(token.id, (token.text,))[0] != token.text:
            raise FileFormatError(
                f"{path}: the added token {token.text!r} has the id {token.id} of "
                f"{by_id[token.id][0]!r}"
            )
        by_id[token.id] = (token.text, token.type)
    if not by_id:
        raise FileFormatError(f"{path}: the vocabulary is empty")
    size = max(by_id) + 1
    if size > 2 * len(by_id) + 1024:
        raise FileFormatError(f"{path}: {len(by_id)} tokens with ids up to {size - 1}")
    try:
        "".join(text for text, _ in by_id.values()).encode()
    except UnicodeEncodeError as error:
        raise FileFormatError(f"{path}: the vocabulary has text that is not Unicode") from error
    notes = []
    unknown = sorted(special - known.keys())
    if unknown:
        notes.append(f"vocabulary: special tokens without an id left out: {', '.join(unknown)}")
    absent = 256 - sum(letter in vocab for letter in _byte_letters())
    if absent:
        notes.append(f"vocabulary: {absent} of the 256 bytes have no token; text loses them")
    filled = [by_id.get(i, (padding_text(i), TokenType.UNUSED)) for i in range(size)]
    return GgufVocabulary(
        pre="",
        tokens=tuple(text for text, _ in filled),
        types=tuple(kind for _, kind in filled),
        added=tuple(known.values()),
        notes=tuple(notes),
    )


#: Bytes that are letters themselves.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))


def token_bytes(text: str) -> bytes | None:
    """The bytes that a token's letters stand for; None if a letter stands for none."""
    known = _bytes_by_letter()
    found = [known.get(letter, -1) for letter in text]
    return None if -1 in found else bytes(found)


@cache
def _bytes_by_letter() -> dict[str, int]:
    others = (byte for byte in range(256) if byte not in _PRINTABLE)
    return dict(zip(_byte_letters(), (*_PRINTABLE, *others), strict=True))


def _byte_letters() -> str:
    """The letters that stand for the 256 bytes: printable Latin-1, then from U+0100 on."""
    others = "".join(chr(256 + i) for i in range(256 - len(_PRINTABLE)))
    return "".join(map(chr, _PRINTABLE)) + others


def _merges(path: Path, merges: Any) -> tuple[str, ...]:
    if not isinstance(merges, list):
        raise FileFormatError(f"{path}: it has no list of merges")
    if not merges:
        raise UnsupportedError(f"{path}: BPE without any merges, which llama.cpp does not load")
    joined = []
    for merge in merges:
        # tokenizers before 0.20 wrote "a b", later ones write ["a", "b"]
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_word, pair)):
            raise FileFormatError(f"{path}: malformed merge {merge!r}")
        joined.append(" ".join(pair))
    return tuple(joined)


def _is_word(text: Any) -> bool:
    return isinstance(text, str) and bool(text) and " " not in text


def _pre_tokenizer(path: Path, pre: Any) -> tuple[str, str]:
    """llama.cpp's name for a pre-tokenizer, and the cuts that our runtime makes before it.

    GPT-2 and GPT-NeoX split by the same pattern, which llama.cpp calls "gpt-2".
    """
    steps = _pre_steps(pre)
    if not steps or not all(isinstance(step, dict) for step in steps):
        raise UnsupportedError(f"{path}: without a pre-tokenizer; expected ByteLevel")
    names = [str(step.get("type")) for step in steps]
    last = steps[-1] if names and names[-1] == "ByteLevel" else {}
    splits_itself = last.get("use_regex", True)
    if names == ["ByteLevel"] and splits_itself:
        return "gpt-2", ""
    # each digit alone, then GPT-2's pattern: llama.cpp names this after StarCoder
    if names == ["Digits", "ByteLevel"] and splits_itself and steps[0].get("individual_digits"):
        return "starcoder", ""
    if names == ["Split", "ByteLevel"] and not splits_itself:
        split = steps[0]
        pattern = split.get("pattern")
        pattern = pattern.get("Regex") if isinstance(pattern, dict) else pattern
        name = _SPLITS.get(pattern) if isinstance(pattern, str) else None
        plain = split.get("behavior") == "Isolated" and not split.get("invert")
        if name and plain:
            return name, ""
        raise UnsupportedError(f"{path}: the pre-tokenizer pattern {pattern!r} is not known")
    if not last or not splits_itself:
        raise UnsupportedError(
            f"{path}: the pre-tokenizer {' + '.join(names)} cannot be expressed; supported are "
            "ByteLevel, Digits and Split before it, and BLOOM's Split + ByteLevel"
        )
    cuts = json.dumps(steps[:-1], ensure_ascii=False)
    try:
        read_cuts(cuts)
    except ValueError as error:
        raise UnsupportedError(f"{path}: {' + '.join(names)}: {error}") from error
    return "gpt-2", cuts
