"""The split of byte-level text if a GGUF file names none.

Goes in: a header. Comes out: llama.cpp's name of the split that the models of this graph were
trained with, and the override that makes llama.cpp take it. Otherwise llama.cpp warns and takes its
"default" split (``llama_vocab::impl::load`` in src/llama-vocab.cpp), which cuts numbers and
punctuation as none of these models do.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp

from infer_os.models.graphs import graph_named

from .gguf_file import GgufHeader

_KEY = "tokenizer.ggml.pre"


def usual_split(header: GgufHeader) -> str:
    """The split to take; "" if the file names one, needs none, or its graph is not ours."""
    metadata = header.metadata
    if metadata.get("tokenizer.ggml.model") != "gpt2" or metadata.get(_KEY):
        return ""
    # files were written before llama.cpp had the key, with the families' tokenizers
    return graph_named(header.architecture).pre_tokenizer


def split_note(header: GgufHeader, split: str) -> str:
    """A note for the user on a split chosen because the file names none."""
    return (
        f"{header.path.name}: it does not say how text is split ({_KEY}); split as {split}, as "
        f"{header.architecture} models are"
    )


def split_override(split: str) -> ctypes.Array[Any]:
    """llama.cpp's ``kv_overrides``: the split, then the empty key that ends the list."""
    overrides: ctypes.Array[Any] = (llama_cpp.llama_model_kv_override * 2)()
    overrides[0].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].key = _KEY.encode()
    overrides[0].value.val_str = split.encode()
    return overrides
