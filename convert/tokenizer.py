"""Turn a checkpoint's tokenizer files into llama.cpp's vocabulary.

Goes in: a checkpoint folder. Comes out: a :class:`GgufVocabulary`, or an error that names the part
that llama.cpp cannot express. tokenizer.json takes precedence over vocab.json and merges.txt;
a sentencepiece model over a tokenizer.json of the unigram type, which was made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bpe import from_tokenizer_json, from_vocab_and_merges
from .errors import FileFormatError, SourceError, UnsupportedError
from .plain_file import read_json
from .special import (
    TokenizerFiles,
    read_tokenizer_files,
    tokens_around_text,
    with_end,
    with_special_tokens,
    with_template,
)
from .unigram import from_sentencepiece, from_unigram_json
from .vocabulary import GgufVocabulary, TokenType, fit_to_rows

__all__ = ["GgufVocabulary", "TokenType", "fit_to_rows", "read_tokens", "read_vocabulary"]

# bloom's, the largest of these families, has 14.5 MB
_LARGEST_TOKENIZER = 256 << 20

_SENTENCEPIECE_NAMES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def read_vocabulary(folder: Path, config: Mapping[str, Any], n_rows: int) -> GgufVocabulary:
    """Read the tokenizer of a checkpoint, padded or cut to the ``n_rows`` of its embedding.

    It has an end-of-text token even if the files name none.

    Raises:
        SourceError: there is no tokenizer.
        FileFormatError: its files are malformed.
        UnsupportedError: it does something that llama.cpp cannot express.
    """
    return with_end(fit_to_rows(read_tokens(folder, config), n_rows))


def read_tokens(folder: Path, config: Mapping[str, Any]) -> GgufVocabulary:
    """Read the tokenizer of a checkpoint as it is; errors as in :func:`read_vocabulary`."""
    files = read_tokenizer_files(folder, config)
    path = folder / "tokenizer.json"
    data = read_json(path, _LARGEST_TOKENIZER)
    pieces = next((folder / n for n in _SENTENCEPIECE_NAMES if (folder / n).is_file()), None)
    if data is not None and not (pieces and _is_unigram(data)):
        return _from_json(path, data, files)
    if pieces:
        return with_special_tokens(from_sentencepiece(pieces, files), files)
    if (folder / "vocab.json").is_file():
        return _from_pair(folder / "vocab.json", files)
    raise SourceError(
        f"{folder}: no tokenizer in this folder; looked for tokenizer.json, "
        f"{', '.join(_SENTENCEPIECE_NAMES)}, vocab.json with merges.txt"
    )


def _is_unigram(data: Mapping[str, Any]) -> bool:
    model = data.get("model")
    return isinstance(model, dict) and model.get("type") == "Unigram"


def _from_json(path: Path, data: Mapping[str, Any], files: TokenizerFiles) -> GgufVocabulary:
    model = data.get("model")
    if not isinstance(model, dict):
        raise FileFormatError(f"{path}: it has no model.vocab")
    kind, vocab = model.get("type", "BPE"), model.get("vocab")
    if kind == "Unigram" and isinstance(vocab, list):
        return with_special_tokens(from_unigram_json(path, data, files), files)
    if not isinstance(vocab, dict):
        raise FileFormatError(f"{path}: it has no model.vocab")
    if kind != "BPE":
        raise UnsupportedError(
            f"{path}: a tokenizer of type {kind!r}; supported are byte-level BPE and Unigram"
        )
    vocabulary = with_special_tokens(from_tokenizer_json(path, data, files), files)
    before, after = tokens_around_text(path, data.get("post_processor"))
    return with_template(vocabulary, path, before, after)


def _from_pair(path: Path, files: TokenizerFiles) -> GgufVocabulary:
    vocabulary = with_special_tokens(from_vocab_and_merges(path, files), files)
    # GPT-2's class starts each text with bos only if asked to
    before = files.text_of("bos") if files.settings.get("add_bos_token") is True else None
    return with_template(vocabulary, path, before, None)
