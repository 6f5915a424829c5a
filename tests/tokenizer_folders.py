"""Vocabularies without a model: convert a folder's tokenizer alone and use it through llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from infer_os.convert import gguf_writer
from infer_os.convert.tokenizer import GgufVocabulary, fit_to_rows, read_tokens
from infer_os.native.model import LlamaModel


def read(folder: Path) -> GgufVocabulary:
    """The folder's vocabulary, for an embedding with as many rows as it has tokens."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    vocabulary = read_tokens(folder, config)
    return fit_to_rows(vocabulary, len(vocabulary.tokens))


def write_gguf(vocabulary: GgufVocabulary, target: Path, graph: str = "gptneox") -> Path:
    """A file with the vocabulary and no weights."""
    writer = gguf.GGUFWriter(target, graph)
    numbers: dict[str, Any] = {
        "context_length": 64, "embedding_length": 32, "block_count": 1,
        "feed_forward_length": 32, "attention.head_count": 1, "rope.dimension_count": 8,
    }  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"{graph}.{key}", value)
    writer.add_float32(f"{graph}.attention.layer_norm_epsilon", 1e-5)
    writer.add_bool(f"{graph}.use_parallel_residual", True)
    gguf_writer._add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return target


def tokenize_all(
    folder: Path, texts: Sequence[str], target: Path, *, parse_special: bool = True
) -> list[list[int]]:
    """Token ids of each text through the folder's converted vocabulary."""
    with LlamaModel(write_gguf(read(folder), target), vocab_only=True) as model:
        return [model.vocab.tokenize(text, parse_special=parse_special) for text in texts]
