"""Check a vocabulary before llama.cpp builds a tokenizer from it.

Follows ``llama_vocab::impl::load`` and ``tokenize`` in llama.cpp's src/llama-vocab.cpp, which
assert on two tokens with the same text and on missing special tokens, and throw through the C
interface if a byte has no token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from .errors import GgufError
from .gguf_file import GgufArray, GgufHeader

_PREFIX = "tokenizer.ggml."
#: llama.cpp's tokenizers for these graphs: byte-level BPE, sentencepiece's BPE and its unigram.
_MODELS = ("gpt2", "llama", "t5")
#: Splits for text that is not byte-level, or with which llama.cpp tokenizes in another way.
_OTHER_SPLITS = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace", "kimi-k2")
_UNKNOWN, _BYTE = 2, 6
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_MOST_TOKENS = 1 << 24
_LONGEST_TOKEN = 1 << 16
_I32, _F32 = 5, 6

#: llama.cpp's default ids of the begin, the end and the unknown token, and whether by default a
#: text gets a begin and an end.
_DEFAULTS: dict[str, dict[str, int]] = {
    "gpt2": {"bos": 11, "eos": 11, "add_bos": 0, "add_eos": 0},
    "llama": {"bos": 1, "eos": 2, "unknown": 0, "add_bos": 1, "add_eos": 0},
    "t5": {"eos": 1, "unknown": 2, "add_bos": 0, "add_eos": 1},
}
#: Splits with which llama.cpp by default begins a text with its begin token.
_BEGINNING_SPLITS = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "tekken", "chameleon",
)  # fmt: skip

#: Whole numbers that llama.cpp reads; "_token_id" is added.
_IDS = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask", "prefix",
    "suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)  # fmt: skip
_FLAGS = (
    "add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix",
    "remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents",
)  # fmt: skip
_KEYS_OF_IDS = frozenset(f"{_PREFIX}{name}_token_id" for name in _IDS)
_KEYS_OF_FLAGS = frozenset(_PREFIX + name for name in _FLAGS)


def check_vocabulary(header: GgufHeader) -> None:
    """Refuse a vocabulary that llama.cpp would end the process on.

    Raises:
        GgufError: a tokenizer that these graphs do not have, a setting of the wrong kind, or
            tokens, types, scores or merges that do not fit each other.
    """
    metadata = header.metadata
    for key, value in metadata.items():
        if key in _KEYS_OF_FLAGS and not isinstance(value, bool):
            raise _bad(header, f"{key!r} is {value!r}; expected true or false")
        if key in _KEYS_OF_IDS and not (type(value) is int and -1 <= value < 1 << 32):
            raise _bad(header, f"{key!r} is {value!r}; expected a token")
    model = metadata.get(f"{_PREFIX}model")
    if model not in _MODELS:
        raise _bad(header, f"the tokenizer is {model!r}; these graphs have {', '.join(_MODELS)}")
    tokens = list(_texts(header, "tokens").texts())
    types = _numbers(header, "token_type", len(tokens), (_I32,), required=False)
    _check_tokens(header, tokens, types, model)
    if model == "gpt2":
        _texts(header, "merges")
        _check_split(header)
    else:
        scores = _numbers(header, "scores", len(tokens), (_F32,), required=True)
        if not all(map(math.isfinite, scores)):
            raise _bad(header, f"{_PREFIX}scores has a value that is not finite")
    _check_added(header, model, len(tokens))


def _check_tokens(
    header: GgufHeader, tokens: list[bytes], types: Collection[int], model: str
) -> None:
    if not 1 <= len(tokens) <= _MOST_TOKENS:
        raise _bad(header, f"{len(tokens)} tokens")
    spelled, different = tokens, set(tokens)
    if not all(different) or any(b"\0" in token for token in different):
        # llama.cpp reads a text up to a zero byte, and gives an empty one a name
        spelled = [token.split(b"\0", 1)[0] or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)]
        different = set(spelled)
    longest = max(map(len, spelled))
    if longest > _LONGEST_TOKEN:
        raise _bad(header, f"a token of {longest} bytes; at most {_LONGEST_TOKEN} are accepted")
    if len(different) != len(spelled):
        first: dict[bytes, int] = {}
        for i, text in enumerate(spelled):
            if (j := first.setdefault(text, i)) != i:
                shown = text.decode("utf-8", "replace")
                raise _bad(header, f"the tokens {j} and {i} are both {shown!r}")
    for i, kind in enumerate(types):
        if kind == _BYTE and not _BYTE_TOKEN.fullmatch(spelled[i]):
            shown = spelled[i].decode("utf-8", "replace")
            raise _bad(header, f"token {i} stands for a byte, but is {shown!r}; expected <0x41>")
    if model == "llama":
        absent = 256 - sum(b"<0x%02X>" % byte in different for byte in range(256))
        if absent:
            raise _bad(
                header, f"the tokenizer is 'llama', but {absent} of the 256 bytes have no token"
            )
    if model == "t5" and _BYTE in types and _UNKNOWN not in types:
        raise _bad(header, "the tokenizer 't5' has no token of the type unknown")


def _check_split(header: GgufHeader) -> None:
    split = header.metadata.get(f"{_PREFIX}pre", "")
    if not isinstance(split, str) or split in _OTHER_SPLITS:
        raise _bad(header, f"{_PREFIX}pre is {split!r}, which is not a split for byte-level text")


def _check_added(header: GgufHeader, model: str, n_tokens: int) -> None:
    """The tokens added around a text must exist, as must the unknown token."""
    metadata, defaults = header.metadata, _DEFAULTS[model]
    begins = metadata.get(f"{_PREFIX}pre") in _BEGINNING_SPLITS and model == "gpt2"
    wanted = {
        "bos": metadata.get(f"{_PREFIX}add_bos_token", bool(defaults["add_bos"] or begins)),
        "eos": metadata.get(f"{_PREFIX}add_eos_token", bool(defaults["add_eos"])),
        "unknown": "unknown" in defaults,
    }
    for name, is_needed in wanted.items():
        given = metadata.get(f"{_PREFIX}{name}_token_id", -1)
        if not 0 <= given < n_tokens:
            given = defaults.get(name, -1)
        if is_needed and not 0 <= given < n_tokens:
            use = "unknown text" if name == "unknown" else "every text"
            raise _bad(
                header,
                f"the tokenizer {model!r} writes a token for {use}, but no "
                f"'{_PREFIX}{name}_token_id' from 0 to {n_tokens - 1} is there",
            )


def _texts(header: GgufHeader, name: str) -> GgufArray:
    value = header.metadata.get(_PREFIX + name)
    if not isinstance(value, GgufArray) or not value.is_text:
        raise _bad(header, f"'{_PREFIX}{name}' is {_kind(value)}; expected an array of strings")
    return value


def _numbers(
    header: GgufHeader, name: str, least: int, kinds: tuple[int, ...], *, required: bool
) -> list[Any]:
    value = header.metadata.get(_PREFIX + name)
    if value is None and not required:
        return []
    if not isinstance(value, GgufArray) or value.type not in kinds:
        what = "whole numbers" if _I32 in kinds else "numbers"
        raise _bad(header, f"'{_PREFIX}{name}' is {_kind(value)}; expected an array of {what}")
    if len(value) != least:
        raise _bad(header, f"'{_PREFIX}{name}' has {len(value)} values for {least} tokens")
    return list(value)


def _kind(value: Any) -> str:
    if isinstance(value, GgufArray):
        return "an array of another type"
    return "missing" if value is None else f"{value!r}"


def _bad(header: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{header.path}: bad GGUF header: {what}")
