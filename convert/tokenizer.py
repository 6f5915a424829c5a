"""Turn a checkpoint's tokenizer files into llama.cpp's vocabulary.

Goes in: a checkpoint folder. Comes out: a :class:`Vocabulary`, or an error that names the part
that llama.cpp cannot express. Format of tokenizer.json: the ``tokenizers`` library
(https://huggingface.co/docs/tokenizers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from .checkpoint import read_json
from .errors import FileFormatError, SourceError, UnsupportedError

# bloom's, the largest of these families, has 14.5 MB
_LARGEST_TOKENIZER = 256 << 20

_BLOOM_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"


class TokenType(IntEnum):
    """llama.cpp's ``llama_token_type``."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary as GGUF stores it: token texts, types and merges by rank.

    ``pre`` is llama.cpp's pre-tokenizer name, ``normalizer`` a Unicode normal form that text takes
    before it is split (llama.cpp does not normalize: the runtime does), ``special`` the ids of
    "bos", "eos" and so on. ``notes`` say what was changed to fit.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    normalizer: str = ""
    add_bos: bool = False
    add_eos: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    notes: tuple[str, ...] = ()


def read_vocabulary(folder: Path, config: Mapping[str, Any], n_rows: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint, padded or cut to the ``n_rows`` of its embedding.

    Raises:
        SourceError: there is no tokenizer.
        FileFormatError: its files are malformed.
        UnsupportedError: it does something that llama.cpp cannot express.
    """
    path = folder / "tokenizer.json"
    data = read_json(path, _LARGEST_TOKENIZER)
    if data is None:
        raise SourceError(f"{folder}: no tokenizer in this folder; looked for tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json") or {}
    vocabulary = _byte_level_bpe(path, data)
    vocabulary = replace(
        vocabulary,
        special=_special_ids(vocabulary, config, settings),
        chat_template=_chat_template(folder, settings),
    )
    return fit_to_rows(vocabulary, n_rows)


def fit_to_rows(vocabulary: Vocabulary, n_rows: int) -> Vocabulary:
    """Pad with unused tokens, or cut, so that every row of the embedding has one token.

    Raises:
        UnsupportedError: tokens that text can produce have no row.
    """
    n_tokens = len(vocabulary.tokens)
    if n_tokens < n_rows:
        padding = tuple(f"[PAD{i}]" for i in range(n_tokens, n_rows))
        return replace(
            vocabulary,
            tokens=vocabulary.tokens + padding,
            types=vocabulary.types + (TokenType.UNUSED,) * len(padding),
            notes=(
                *vocabulary.notes,
                f"vocabulary: {n_tokens} tokens padded to the embedding's {n_rows} rows",
            ),
        )
    if n_tokens == n_rows:
        return vocabulary
    lost = range(n_rows, n_tokens)
    if any(vocabulary.types[i] is TokenType.NORMAL for i in lost):
        raise UnsupportedError(
            f"the tokenizer has {n_tokens} tokens, but the embedding only {n_rows} rows: "
            f"token {n_rows} ({vocabulary.tokens[n_rows]!r}) could not be embedded"
        )
    return replace(
        vocabulary,
        tokens=vocabulary.tokens[:n_rows],
        types=vocabulary.types[:n_rows],
        special={name: i for name, i in vocabulary.special.items() if i < n_rows},
        notes=(
            *vocabulary.notes,
            f"vocabulary: {len(lost)} added tokens without an embedding row left out",
        ),
    )


def _byte_level_bpe(path: Path, data: Mapping[str, Any]) -> Vocabulary:
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise FileFormatError(f"{path}: it has no model.vocab")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise UnsupportedError(f"{path}: a tokenizer of type {kind!r}; supported is byte-level BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise UnsupportedError(f"{path}: BPE with {key} has no counterpart in llama.cpp")
    add_bos, add_eos = _added_by_template(path, data.get("post_processor"))
    tokens, types = _tokens(path, model["vocab"], data.get("added_tokens") or [])
    return Vocabulary(
        pre=_pre_tokenizer(path, data.get("pre_tokenizer")),
        tokens=tokens,
        types=types,
        merges=_merges(path, model.get("merges")),
        normalizer=_normalizer(path, data.get("normalizer")),
        add_bos=add_bos,
        add_eos=add_eos,
    )


def _tokens(
    path: Path, vocab: Mapping[str, Any], added: list[Any]
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    by_id: dict[int, tuple[str, TokenType]] = {}
    for text, number in vocab.items():
        if type(number) is not int or not 0 <= number < 1 << 24 or number in by_id:
            raise FileFormatError(f"{path}: the token {text!r} has the bad or repeated id {number}")
        by_id[number] = (text, TokenType.NORMAL)
    for entry in added:
        try:
            number, text, special = entry["id"], entry["content"], entry.get("special", False)
        except (TypeError, KeyError) as error:
            raise FileFormatError(f"{path}: a malformed entry in added_tokens") from error
        if type(number) is not int or not 0 <= number < 1 << 24 or not isinstance(text, str):
            raise FileFormatError(f"{path}: the added token {text!r} has the bad id {number!r}")
        by_id[number] = (text, TokenType.CONTROL if special else TokenType.USER_DEFINED)
    if not by_id:
        raise FileFormatError(f"{path}: the vocabulary is empty")
    size = max(by_id) + 1
    if size > 2 * len(by_id) + 1024:
        raise FileFormatError(f"{path}: {len(by_id)} tokens with ids up to {size - 1}")
    filled = [by_id.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(size)]
    return tuple(text for text, _ in filled), tuple(kind for _, kind in filled)


def _merges(path: Path, merges: Any) -> tuple[str, ...]:
    if not isinstance(merges, list):
        raise FileFormatError(f"{path}: it has no list of merges")
    joined = []
    for merge in merges:
        # tokenizers before 0.20 wrote "a b", later ones write ["a", "b"]
        text = " ".join(merge) if isinstance(merge, list) and len(merge) == 2 else merge
        if not isinstance(text, str) or text.count(" ") != 1:
            raise FileFormatError(f"{path}: malformed merge {merge!r}")
        joined.append(text)
    return tuple(joined)


def _normalizer(path: Path, normalizer: Any) -> str:
    if normalizer is None:
        return ""
    kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return str(kind)
    raise UnsupportedError(f"{path}: the normalizer {kind!r} cannot be expressed")


def _pre_tokenizer(path: Path, pre: Any) -> str:
    """llama.cpp's name for a pre-tokenizer; these are the ones of the four families.

    GPT-2 and GPT-NeoX split by one and the same pattern, which llama.cpp calls "gpt-2".
    """
    sequence = isinstance(pre, dict) and pre.get("type") == "Sequence"
    steps = pre.get("pretokenizers") if sequence else [pre]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UnsupportedError(f"{path}: without a pre-tokenizer; expected ByteLevel")
    names = [str(step.get("type")) for step in steps]
    if names and names[-1] == "ByteLevel" and steps[-1].get("add_prefix_space"):
        raise UnsupportedError(f"{path}: ByteLevel with add_prefix_space cannot be expressed")
    if names == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if names == ["Split", "ByteLevel"]:
        split = steps[0]
        pattern = (split.get("pattern") or {}).get("Regex")
        plain = split.get("behavior") == "Isolated" and not split.get("invert")
        if pattern == _BLOOM_PATTERN and plain and not steps[1].get("use_regex", True):
            return "bloom"
        raise UnsupportedError(f"{path}: the pre-tokenizer pattern {pattern!r} is not known")
    raise UnsupportedError(
        f"{path}: the pre-tokenizer {' + '.join(names)} cannot be expressed; "
        "supported are ByteLevel and BLOOM's Split + ByteLevel"
    )


def _added_by_template(path: Path, processor: Any) -> tuple[bool, bool]:
    """Whether encoding puts a token before and after the text."""
    kind = processor.get("type") if isinstance(processor, dict) else processor
    if kind in (None, "ByteLevel"):
        return False, False
    if kind == "Sequence":
        flags = [_added_by_template(path, step) for step in processor.get("processors", [])]
        return any(f[0] for f in flags), any(f[1] for f in flags)
    if kind != "TemplateProcessing":
        raise UnsupportedError(f"{path}: the post-processor {kind!r} cannot be expressed")
    shape = [
        "token" if "SpecialToken" in piece else "text" for piece in processor.get("single", [])
    ]
    if shape.count("text") != 1 or shape.index("text") > 1 or len(shape) - shape.index("text") > 2:
        raise UnsupportedError(f"{path}: a template of {shape} cannot be expressed")
    return shape[0] == "token", shape[-1] == "token"


def _special_ids(
    vocabulary: Vocabulary, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, int]:
    """Ids of the special tokens: from config.json, else by the text in tokenizer_config.json."""
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad", "sep"):
        number = config.get(f"{name}_token_id")
        if type(number) is int and 0 <= number < len(vocabulary.tokens):
            ids[name] = number
            continue
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in vocabulary.tokens:
            ids[name] = vocabulary.tokens.index(text)
    return ids


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    template = settings.get("chat_template")
    if isinstance(template, str):
        return template
    try:
        with (folder / "chat_template.jinja").open(encoding="utf-8") as file:
            return file.read(1 << 20)
    except (OSError, UnicodeDecodeError):
        return None
