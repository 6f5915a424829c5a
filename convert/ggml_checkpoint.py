"""An old ggml file of GPT-J as a checkpoint, with the tokenizer that it lacks.

Goes in: the file, and a folder with the model's tokenizer, since merges are not in the file. Comes
out: a :class:`~.checkpoint.Checkpoint`, once every token is found to be the file's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infer_os.models.weight_types import RECIPES

from .bpe import token_bytes
from .checkpoint import Checkpoint, open_checkpoint, read_config
from .errors import SourceError
from .ggml_blocks import OLD_TYPES, VERSIONS
from .ggml_file import GgmlFile, is_ggml
from .plain_file import read_json
from .tokenizer import read_tokens

_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id")


def open_local(source: Path, tokenizer: Path | None) -> Checkpoint:
    """A checkpoint that is here: a folder, or an old ggml file with its tokenizer's folder.

    Raises:
        As :func:`open_checkpoint` and :func:`open_ggml_checkpoint`.
    """
    if is_ggml(source):
        return open_ggml_checkpoint(source, tokenizer)
    return open_checkpoint(source)


def local_config(source: Path) -> dict[str, Any]:
    """The config of one, without its weights; errors as :func:`open_local`."""
    if not is_ggml(source):
        return read_config(source)
    with GgmlFile(source) as file:
        return file.config


def open_ggml_checkpoint(path: Path, tokenizer: Path | None) -> Checkpoint:
    """Read all of a file but its values.

    Raises:
        SourceError: no tokenizer was named, or that of another model.
        FileFormatError, UnsupportedError: as :class:`GgmlFile` and the tokenizer's reader.
    """
    with GgmlFile(path) as file:
        if tokenizer is None:
            raise SourceError(
                f"{path}: an old ggml file lacks its tokenizer's merges; name a folder that has "
                "the tokenizer of the same model with --tokenizer"
            )
        beside = read_json(tokenizer / "config.json") or {}
        # which tokens begin and end a text is not in the file
        config = {key: beside[key] for key in _NAMED if key in beside} | file.config
        _check_tokens(file, tokenizer)
        kinds = {tensor.dtype for tensor in file.tensors.values()}
        return Checkpoint(tokenizer, config, file.tensors, GgmlFile, _notes(file, kinds))


def _notes(file: GgmlFile, kinds: set[str]) -> tuple[str, ...]:
    """Whether blocks can stay as they are."""
    today = file.version == VERSIONS[-1]
    notes = []
    for old in OLD_TYPES.values():
        if old.name in kinds and today and old.name in RECIPES:
            notes.append(f"weights: {old.name} blocks keep their bits with --type {old.name}")
        elif old.name in kinds:
            form = "" if today else f" of an older form (version {file.version})"
            notes.append(f"weights: {old.name} blocks{form} are decoded, and quantized again")
    return tuple(notes)


def _check_tokens(file: GgmlFile, tokenizer: Path) -> None:
    """Compare a tokenizer with the texts of the file's tokens."""
    vocabulary = read_tokens(tokenizer, file.config)
    plain = {token.id for token in vocabulary.added}
    for i, (text, stored) in enumerate(zip(vocabulary.tokens, file.tokens, strict=False)):
        # the converter wrote added tokens as it wrote the others, or as they are
        if stored not in (token_bytes(text), text.encode() if i in plain else None):
            raise SourceError(
                f"--tokenizer {tokenizer}: token {i} is {text!r}, but {stored!r} in {file.path}: "
                "not the tokenizer of this model"
            )
