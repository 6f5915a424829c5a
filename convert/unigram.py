"""Sentencepiece's unigram vocabularies: from spiece.model, or a tokenizer.json of that type.

llama.cpp's "t5" tokenizer finds the same path, that of the largest summed score. Known differences,
each a note where it applies: no byte fallback (our runtime adds it), no lower-casing (likewise).
Without a note: a literal U+2581 at the ends of a text, which sentencepiece strips as a space; and
if a tokenizer.json normalizes by grapheme, the result is sentencepiece's. Runs
of spaces become one after added tokens are found, also those that are found in normalized text.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infer_os.native.unigram_tokenizer import CharsMap

from .added import added_notes
from .errors import FileFormatError, UnsupportedError
from .normalizer import flat_steps, steps_text
from .sentencepiece_file import PieceType, read_sentencepiece
from .special import TokenizerFiles, read_added_token, tokens_around_text, with_template
from .vocabulary import NEVER, AddedToken, GgufVocabulary, TokenType, padding_text

_XGLM = "XGLMTokenizer"
_CLASSES = ("", "T5Tokenizer", _XGLM, "PreTrainedTokenizer")
#: fairseq's own tokens, which XGLM has in the place of sentencepiece's first three.
_FAIRSEQ = (
    ("<s>", TokenType.CONTROL), ("<pad>", TokenType.CONTROL), ("</s>", TokenType.CONTROL),
    ("<unk>", TokenType.UNKNOWN),
)  # fmt: skip
_N_REPLACED, _N_MADE_UP = 3, 7

_TYPES = {
    PieceType.NORMAL: TokenType.NORMAL,
    PieceType.UNKNOWN: TokenType.UNKNOWN,
    PieceType.CONTROL: TokenType.CONTROL,
    PieceType.USER_DEFINED: TokenType.USER_DEFINED,
    PieceType.UNUSED: TokenType.UNUSED,
    PieceType.BYTE: TokenType.BYTE,
}

_BYTE_NOTE = (
    "vocabulary: characters without a token become their bytes' tokens in this program; other "
    "llama.cpp programs write the unknown token for them"
)
_LOWERCASE_NOTE = (
    "vocabulary: the tokenizer lower-cases text; this program does so, other llama.cpp programs "
    "must be given text in lower case"
)
_EOS_NOTE = (
    "vocabulary: Hugging Face's class puts the end token after each text; these models do not "
    "want it for generation, so it is not added"
)


@dataclass(frozen=True, slots=True)
class _Rules:
    """How text is prepared."""

    charsmap: bytes
    add_prefix: bool
    remove_extra: bool
    byte_fallback: bool
    steps: str = ""


def from_sentencepiece(path: Path, files: TokenizerFiles) -> GgufVocabulary:
    """The vocabulary of a sentencepiece model file.

    Raises:
        FileFormatError: it is malformed.
        UnsupportedError: it does something that llama.cpp cannot express.
    """
    model = read_sentencepiece(path)
    _check_class(path, files)
    if model.algorithm != "unigram":
        raise UnsupportedError(
            f"{path}: a sentencepiece model of type {model.algorithm!r}; supported is unigram"
        )
    if model.whitespace_as_suffix:
        raise UnsupportedError(f"{path}: treat_whitespace_as_suffix cannot be expressed")
    if not model.escape_whitespaces:
        raise UnsupportedError(f"{path}: without escape_whitespaces it cannot be expressed")
    rules = _Rules(
        model.charsmap, model.add_dummy_prefix, model.remove_extra_whitespaces, model.byte_fallback
    )
    pieces = [(p.text, p.score, _TYPES[p.type]) for p in model.pieces]
    if not _is_xglm(files):
        return _vocabulary(path, pieces, rules, files, files.added_tokens())
    pieces = [
        *((text, 0.0, kind) for text, kind in _FAIRSEQ),
        *pieces[_N_REPLACED:],
        *((f"<madeupword{i}>", 0.0, TokenType.CONTROL) for i in range(_N_MADE_UP)),
    ]
    vocabulary = _vocabulary(path, pieces, rules, files, files.added_tokens())
    return with_template(vocabulary, path, "</s>", None)


def _is_xglm(files: TokenizerFiles) -> bool:
    """Whether the ids are fairseq's: one more than sentencepiece's."""
    name = files.tokenizer_class.removesuffix("Fast")
    return name == _XGLM or (not name and files.config.get("model_type") == "xglm")


def from_unigram_json(path: Path, data: Mapping[str, Any], files: TokenizerFiles) -> GgufVocabulary:
    """The vocabulary of a tokenizer.json whose model is Unigram.

    Raises:
        FileFormatError: it is malformed.
        UnsupportedError: it does something that llama.cpp cannot express.
    """
    model = data["model"]
    _check_class(path, files)
    unknown = model.get("unk_id")
    byte_fallback = model.get("byte_fallback") is True
    pieces = []
    for i, entry in enumerate(model["vocab"]):
        match entry:
            case [str(text), int() | float() as score] if text and abs(score) < 1e9:
                kind = TokenType.UNKNOWN if i == unknown else TokenType.NORMAL
                if byte_fallback and _is_byte(text):
                    kind = TokenType.BYTE
                pieces.append((text, float(score), kind))
            case _:
                raise FileFormatError(f"{path}: a malformed entry in model.vocab: {entry!r}")
    if not any(kind is TokenType.UNKNOWN for _, _, kind in pieces):
        raise FileFormatError(f"{path}: model.vocab has no unknown token: unk_id is {unknown!r}")
    entries = data.get("added_tokens") or []
    if not isinstance(entries, list):
        raise FileFormatError(f"{path}: added_tokens is not a list")
    added = {token.text: token for token in files.added_tokens()}
    added |= {token.text: token for token in (read_added_token(path, e) for e in entries)}
    steps, charsmap, collapses, strips = _json_normalizer(path, data.get("normalizer"))
    splits, prefixes, notes = _json_pre_tokenizer(path, data.get("pre_tokenizer"))
    rules = _Rules(charsmap, prefixes, collapses or splits, byte_fallback, steps)
    if collapses and not splits and not strips:
        notes.append("vocabulary: a space at the end of a text is dropped, unlike in tokenizers")
    if prefixes and not rules.remove_extra:
        notes.append(
            "vocabulary: a text that starts with a space gets one more, unlike in tokenizers"
        )
    if any("▁" in text[1:] for text, _, kind in pieces if kind is TokenType.NORMAL):
        notes.append("vocabulary: pieces of several words are used, unlike in tokenizers")
    vocabulary = _vocabulary(path, pieces, rules, files, tuple(added.values()))
    before, after = tokens_around_text(path, data.get("post_processor"))
    if after is not None:
        notes.append(_EOS_NOTE)
    vocabulary = replace(vocabulary, notes=(*vocabulary.notes, *dict.fromkeys(notes)))
    return with_template(vocabulary, path, before, None)


def _check_class(path: Path, files: TokenizerFiles) -> None:
    if files.tokenizer_class.removesuffix("Fast") not in _CLASSES:
        raise UnsupportedError(
            f"{path}: a unigram vocabulary of the class {files.tokenizer_class!r}; supported are "
            f"T5Tokenizer and {_XGLM}"
        )


def _vocabulary(
    path: Path,
    pieces: list[tuple[str, float, TokenType]],
    rules: _Rules,
    files: TokenizerFiles,
    added: tuple[AddedToken, ...],
) -> GgufVocabulary:
    if rules.remove_extra and not rules.add_prefix:
        raise UnsupportedError(
            f"{path}: remove_extra_whitespaces without add_dummy_prefix cannot be expressed: "
            "llama.cpp would then put a space before the text"
        )
    try:
        "".join(text for text, _, _ in pieces).encode()
        charsmap = CharsMap(rules.charsmap)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind is TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise FileFormatError(f"{path}: it has {len(unknown)} unknown tokens; expected one")
    pieces = _plain_symbols(path, pieces, charsmap)
    notes = []
    if any(kind is TokenType.BYTE for _, _, kind in pieces):
        if rules.byte_fallback:
            notes.append(_BYTE_NOTE)
        bad = [text for text, _, kind in pieces if kind is TokenType.BYTE and not _is_byte(text)]
        if bad:
            raise FileFormatError(f"{path}: the byte token {bad[0]!r} is not of the form <0x41>")
    lowercase = files.settings.get("do_lower_case") is True
    if lowercase:
        notes.append(_LOWERCASE_NOTE)
    if files.tokenizer_class.startswith("T5"):
        notes.append(_EOS_NOTE)
    pieces, kept = _with_added(path, pieces, files, added)
    if rules.add_prefix and not rules.remove_extra:
        notes.append("vocabulary: a text of only spaces gets one space too few")
    vocabulary = GgufVocabulary(
        pre="default",
        model="t5",
        tokens=tuple(text for text, _, _ in pieces),
        types=tuple(kind for _, _, kind in pieces),
        scores=tuple(score for _, score, _ in pieces),
        charsmap=rules.charsmap,
        add_space_prefix=rules.add_prefix,
        remove_extra_whitespaces=rules.remove_extra,
        steps=rules.steps,
        lowercase=lowercase,
        added=kept,
        special={"unk": unknown[0]},
        notes=tuple(notes),
    )
    return replace(vocabulary, notes=(*vocabulary.notes, *added_notes(path, vocabulary)))


def _plain_symbols(
    path: Path, pieces: list[tuple[str, float, TokenType]], charsmap: CharsMap
) -> list[tuple[str, float, TokenType]]:
    """Write user-defined and unused pieces so that llama.cpp treats them as sentencepiece does.

    llama.cpp cuts a text at user-defined tokens and treats each part as a new text, with a space
    before it. Sentencepiece does not: it scores such a piece as one best piece per byte. llama.cpp
    also matches unused pieces; a changed text prevents that.
    """
    scores = [score for _, score, kind in pieces if kind is TokenType.NORMAL]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    result = []
    for i, (text, score, kind) in enumerate(pieces):
        if kind is TokenType.USER_DEFINED:
            data = text.encode()
            try:
                plain = charsmap.normalize(data) == data and not {" ", "▁"} & set(text)
            except ValueError as error:
                raise FileFormatError(f"{path}: {error}") from error
            if plain:
                # not below the lowest score, which sets the price of an unknown character
                score = max(low, len(data) * high - 0.1)
                kind = TokenType.NORMAL
        elif kind is TokenType.UNUSED:
            text, score = f"[UNUSED{i}]", NEVER
        result.append((text, score, kind))
    return result


def _with_added(
    path: Path,
    pieces: list[tuple[str, float, TokenType]],
    files: TokenizerFiles,
    added: tuple[AddedToken, ...],
) -> tuple[list[tuple[str, float, TokenType]], tuple[AddedToken, ...]]:
    """Let Hugging Face's added and special tokens set the types, even of existing tokens."""
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    known = {token.text: token for token in added}
    for text in files.special_texts():
        if text in known:
            known[text] = replace(known[text], special=True)
        elif text in ids:
            known[text] = AddedToken(ids[text], text, special=True)
    pieces = list(pieces)
    for token in sorted(known.values(), key=lambda token: token.id):
        if token.id > 2 * len(ids) + 1024:
            raise FileFormatError(f"{path}: the added token {token.text!r} has the id {token.id}")
        while len(pieces) <= token.id:
            pieces.append((padding_text(len(pieces)), NEVER, TokenType.UNUSED))
        text, score, kind = pieces[token.id]
        if text != token.text and kind is not TokenType.UNUSED:
            raise FileFormatError(
                f"{path}: the added token {token.text!r} has the id {token.id} of {text!r}"
            )
        if kind is not TokenType.UNKNOWN:
            pieces[token.id] = (token.text, score, token.type)
    return pieces, tuple(known.values())


def _is_byte(text: str) -> bool:
    if len(text) != 6 or not text.startswith("<0x") or not text.endswith(">"):
        return False
    return all(c in "0123456789ABCDEFabcdef" for c in text[3:5])


def _json_normalizer(path: Path, normalizer: Any) -> tuple[str, bytes, bool, bool]:
    """Steps before the compiled table, the table, whether spaces merge, whether ends are stripped.

    The table and llama.cpp come last: other steps after them cannot be expressed.
    """
    before: list[Any] = []
    charsmap, collapses, strips = b"", False, False
    for step in flat_steps(path, normalizer):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": str(text)} if not charsmap:
                try:
                    charsmap = base64.b64decode(text, validate=True)
                except (binascii.Error, ValueError) as error:
                    raise FileFormatError(f"{path}: a malformed precompiled_charsmap") from error
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "▁"}:
                collapses = True
            case {"type": "Strip", "strip_left": False, "strip_right": True}:
                strips = True
            case _ if not (charsmap or collapses or strips):
                before.append(step)
            case _:
                kind = step.get("type") if isinstance(step, dict) else step
                raise UnsupportedError(
                    f"{path}: the normalizer {kind!r} after another one cannot be expressed"
                )
    return steps_text(path, before), charsmap, collapses, strips


def _json_pre_tokenizer(path: Path, pre: Any) -> tuple[bool, bool, list[str]]:
    """Whether text is cut at white space, whether a space is put before it, and notes."""
    steps = _steps(pre, "pretokenizers")
    names = [str(step.get("type")) if isinstance(step, dict) else "none" for step in steps]
    last = steps[-1] if names in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) else {}
    if not isinstance(last, dict) or last.get("replacement") != "▁":
        raise UnsupportedError(
            f"{path}: the pre-tokenizer {' + '.join(names) or 'none'} cannot be expressed for a "
            "unigram vocabulary; supported is Metaspace"
        )
    scheme = last.get("prepend_scheme")
    if scheme is None:
        scheme = "always" if last.get("add_prefix_space", True) else "never"
    if scheme not in ("always", "first", "never"):
        raise UnsupportedError(f"{path}: Metaspace with prepend_scheme {scheme!r} is not known")
    notes = []
    if scheme == "first":
        notes.append(
            "vocabulary: text after a special token gets a space before it, unlike in tokenizers"
        )
    return len(steps) > 1, scheme != "never", notes


def _steps(value: Any, key: str) -> list[Any]:
    """The steps of a Sequence, or the single step; none for null."""
    if value is None:
        return []
    if isinstance(value, dict) and value.get("type") == "Sequence":
        steps = value.get(key)
        return steps if isinstance(steps, list) else [None]
    return [value]
