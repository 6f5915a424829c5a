"""Special tokens and chat templates of a checkpoint: which ids begin, end and pad a text.

Several files may name them. For ids, what generation uses takes precedence: generation_config.json,
config.json, then the texts in tokenizer_config.json and special_tokens_map.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infer_os.errors import shortened

from .errors import FileFormatError, UnsupportedError
from .plain_file import read_json, read_text
from .vocabulary import MOST_TOKENS, AddedToken, GgufVocabulary, TokenType

_LARGEST_TEMPLATE = 1 << 20

_NAMES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")

#: llama.cpp's keys for further ids, apart from eos, that end a generation.
_FURTHER_ENDS = ("eot", "eom")

#: Added tokens that end a turn although no config says so; their models rely on it.
_ENDS_OF_TURN = {"### End": "Dolly", "<|USER|>": "StableLM-tuned-alpha"}

# What ends a text in the families' vocabularies, if no file says so.
_USUAL_ENDS = ("<|endoftext|>", "</s>", "<eos>")
_LONGEST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A folder's small files about its tokenizer; an empty mapping for each missing one."""

    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    settings: Mapping[str, Any]
    special_map: Mapping[str, Any]

    @property
    def tokenizer_class(self) -> str:
        """The class that the files name; "" if none."""
        name = self.settings.get("tokenizer_class") or self.config.get("tokenizer_class")
        return name if isinstance(name, str) else ""

    def text_of(self, name: str) -> str | None:
        """The text of the special token ``name``, such as "bos"."""
        for source in (self.settings, self.special_map):
            text = _token_text(source.get(f"{name}_token"))
            if text is not None:
                return text
        return None

    def special_texts(self) -> tuple[str, ...]:
        """Every text that the files call special."""
        texts = [self.text_of(name) for name in _NAMES]
        for source in (self.settings, self.special_map):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                entries = source.get(key)
                if isinstance(entries, dict):
                    entries = list(entries.values())
                texts += [_token_text(e) for e in entries] if isinstance(entries, list) else []
        return tuple(dict.fromkeys(text for text in texts if text))

    def added_tokens(self) -> tuple[AddedToken, ...]:
        """What tokenizer_config.json and added_tokens.json add, by id.

        Raises:
            FileFormatError: an entry is malformed.
        """
        path = self.folder / "tokenizer_config.json"
        decoder = self.settings.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise FileFormatError(f"{path}: added_tokens_decoder is not a table")
        found = {}
        for key, entry in decoder.items():
            if not isinstance(entry, dict) or not key.isascii() or not key.isdecimal():
                raise FileFormatError(f"{path}: a malformed entry in added_tokens_decoder")
            token = read_added_token(path, {**entry, "id": int(key[:12])})
            found[token.id] = token
        path = self.folder / "added_tokens.json"
        special = self.special_texts()
        for text, number in (read_json(path) or {}).items():
            entry = {"id": number, "content": text, "special": text in special}
            token = read_added_token(path, entry)
            found.setdefault(token.id, token)
        return tuple(found[i] for i in sorted(found))


def read_tokenizer_files(folder: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Read the small files.

    Raises:
        FileFormatError: one is not a JSON object.
    """
    names = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
    return TokenizerFiles(folder, config, *(read_json(folder / name) or {} for name in names))


def read_added_token(path: Path, entry: Any) -> AddedToken:
    """An added token from its JSON form.

    Raises:
        FileFormatError: it is malformed.
    """
    try:
        number, text, special = entry["id"], entry["content"], entry.get("special", False)
    except (TypeError, KeyError, AttributeError) as error:
        raise FileFormatError(f"{path}: a malformed entry in added_tokens") from error
    if type(number) is not int or not 0 <= number < MOST_TOKENS or not isinstance(text, str):
        raise FileFormatError(f"{path}: the added token {text!r} has the bad id {number!r}")
    if not text:
        raise FileFormatError(f"{path}: the added token {number} is empty")
    flags = tuple(name for name in ("lstrip", "rstrip", "single_word") if entry.get(name))
    # transformers' default, if a file does not say
    normalized = bool(entry.get("normalized", not special))
    return AddedToken(number, text, bool(special), flags, normalized)


def with_special_tokens(vocabulary: GgufVocabulary, files: TokenizerFiles) -> GgufVocabulary:
    """Add the special ids and the chat templates; existing ones stay.

    Raises:
        FileFormatError: a chat template is malformed.
    """
    ids, ends, notes = _special_ids(vocabulary, files)
    ids |= vocabulary.special
    for i, token in enumerate(vocabulary.tokens):
        if token in _ENDS_OF_TURN and vocabulary.types[i] is not TokenType.NORMAL:
            ends.append(i)
            notes.append(
                f"vocabulary: {token!r} also ends a generation, as {_ENDS_OF_TURN[token]} expects"
            )
    further = [i for i in dict.fromkeys(ends) if i != ids.get("eos")]
    ids |= dict(zip(_FURTHER_ENDS, further, strict=False))
    if len(further) > len(_FURTHER_ENDS):
        left = [vocabulary.tokens[i] for i in further[len(_FURTHER_ENDS) :]]
        notes.append(f"vocabulary: no key left for further end tokens: {left!r} end nothing")
    template, named = _chat_templates(files)
    return replace(
        vocabulary,
        special=ids,
        chat_template=template,
        named_templates=named,
        notes=(*vocabulary.notes, *notes),
    )


def _special_ids(
    vocabulary: GgufVocabulary, files: TokenizerFiles
) -> tuple[dict[str, int], list[int], list[str]]:
    """Special ids by name, the ids that end a generation, and notes on invalid ids."""
    ids: dict[str, int] = {}
    ends: list[int] = []
    notes: list[str] = []
    size = len(vocabulary.tokens)
    sources = (("generation_config.json", files.generation), ("config.json", files.config))
    for name in _NAMES:
        found: list[int] = []
        for file_name, source in sources:
            value = source.get(f"{name}_token_id")
            values = value if isinstance(value, list) and name == "eos" else [value]
            found = [v for v in values if type(v) is int and 0 <= v < size]
            notes += [
                f"vocabulary: {file_name}: {name}_token_id {_shown(v)} ignored; expected a token "
                f"from 0 to {size - 1}"
                for v in values
                if v is not None and (type(v) is not int or not 0 <= v < size)
            ]
            if found:
                break
        text = files.text_of(name)
        if not found and text in vocabulary.tokens:
            found = [vocabulary.tokens.index(text)]
        if found:
            ids[name] = found[0]
        if name == "eos":
            ends = found
    return ids, ends, notes


def _shown(value: Any) -> str:
    return shortened(repr(value), _LONGEST_SHOWN)


def with_end(vocabulary: GgufVocabulary) -> GgufVocabulary:
    """Name a token that ends a generation, if the checkpoint names none.

    llama.cpp would take one of ordinary text (``special_eos_id`` in llama-vocab.cpp: 11 for BPE, 1
    for unigram), and every llama.cpp program but ours stops there. Takes a padded vocabulary.
    """
    if "eos" in vocabulary.special:
        return vocabulary
    kinds = vocabulary.types
    usual = [
        i
        for text in _USUAL_ENDS
        for i, token in enumerate(vocabulary.tokens)
        if token == text and kinds[i] in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    special = [i for i, kind in enumerate(kinds) if kind is TokenType.CONTROL]
    unused = [i for i, kind in enumerate(kinds) if kind is TokenType.UNUSED]
    # the first special token, but the last of the padding
    end = next(iter((*usual, *special, *reversed(unused))), None)
    if end is None:
        note = (
            "vocabulary: no end token named, and none could serve as one: other llama.cpp "
            "programs may stop at a token of ordinary text"
        )
        return replace(vocabulary, notes=(*vocabulary.notes, note))
    note = f"vocabulary: no end token named; {vocabulary.tokens[end]!r} ({end}) takes its place"
    return replace(
        vocabulary,
        special={**vocabulary.special, "eos": end},
        notes=(*vocabulary.notes, note),
    )


def with_template(
    vocabulary: GgufVocabulary, path: Path, before: str | None, after: str | None
) -> GgufVocabulary:
    """Make each text start with the token ``before`` and end with ``after``.

    The tokens of the template count, whatever the config calls them.

    Raises:
        UnsupportedError: it is not a token, or differs from the model's end.
    """
    special = dict(vocabulary.special)
    for name, token in (("bos", before), ("eos", after)):
        if token is None:
            continue
        if token not in vocabulary.tokens:
            raise UnsupportedError(f"{path}: the template adds {token!r}, which is not a token")
        number = vocabulary.tokens.index(token)
        if name == "eos" and special.get(name, number) != number:
            raise UnsupportedError(
                f"{path}: the template ends a text with {token!r}, but the model's end is "
                f"token {special[name]}"
            )
        special[name] = number
    return replace(
        vocabulary, special=special, add_bos=before is not None, add_eos=after is not None
    )


def tokens_around_text(path: Path, processor: Any) -> tuple[str | None, str | None]:
    """The tokens that a tokenizer.json's post-processor puts before and after a text.

    Raises:
        UnsupportedError: the post-processor does more than that.
    """
    kind = processor.get("type") if isinstance(processor, dict) else processor
    if kind is None or kind == "ByteLevel":
        return None, None
    if kind == "Sequence":
        steps = processor.get("processors")
        found = [tokens_around_text(path, s) for s in steps] if isinstance(steps, list) else []
        before, after = [f[0] for f in found if f[0]], [f[1] for f in found if f[1]]
        if len(before) > 1 or len(after) > 1:
            raise UnsupportedError(f"{path}: several templates cannot be expressed")
        return next(iter(before), None), next(iter(after), None)
    if kind == "RobertaProcessing":
        pair = [processor.get("cls"), processor.get("sep")]
        if not all(isinstance(p, list) and p and isinstance(p[0], str) for p in pair):
            raise FileFormatError(f"{path}: a malformed RobertaProcessing")
        return pair[0][0], pair[1][0]
    if kind != "TemplateProcessing":
        raise UnsupportedError(f"{path}: the post-processor {kind!r} cannot be expressed")
    pieces = processor.get("single")
    shape = [_template_token(piece) for piece in pieces] if isinstance(pieces, list) else []
    at = shape.index(None) if None in shape else len(shape)
    if shape.count(None) != 1 or at > 1 or len(shape) - at > 2:
        raise UnsupportedError(f"{path}: a template of {pieces!r} cannot be expressed")
    return shape[0], shape[-1]


def _template_token(piece: Any) -> str | None:
    """The token of a template's piece; None for the text itself."""
    token = piece.get("SpecialToken") if isinstance(piece, dict) else None
    return str(token.get("id")) if isinstance(token, dict) else None


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _chat_templates(files: TokenizerFiles) -> tuple[str | None, dict[str, str]]:
    """The default chat template, and others by name; a separate file overrides the settings."""
    named: dict[str, str] = {}
    setting = files.settings.get("chat_template")
    if isinstance(setting, str):
        named["default"] = setting
    elif isinstance(setting, list):
        for entry in setting:
            name = entry.get("name") if isinstance(entry, dict) else None
            template = entry.get("template") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not isinstance(template, str):
                path = files.folder / "tokenizer_config.json"
                raise FileFormatError(f"{path}: a malformed entry in chat_template")
            named[name] = template
    path = files.folder / "chat_template.jinja"
    # a character has up to four bytes
    written = read_text(path, 4 * _LARGEST_TEMPLATE)
    if written is not None:  # with the line ends of a text file
        named["default"] = written.replace("\r\n", "\n").replace("\r", "\n")
    for name, template in named.items():
        if len(template) > _LARGEST_TEMPLATE:
            raise FileFormatError(f"{path}: the chat template {name!r} is larger than 1 MB")
    # JSON can spell half a surrogate pair, UTF-8 cannot
    clean = {_utf8(name): _utf8(template) for name, template in named.items()}
    return clean.pop("default", None), clean


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
