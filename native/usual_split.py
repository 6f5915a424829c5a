"""The split of byte-level text if a GGUF file names none.

Goes in: a header. Comes out: llama.cpp's name of the split that the models of this graph were
trained with, to be given to it as if the file said so. Otherwise llama.cpp warns and takes its
"default" split (``llama_vocab::impl::load`` in src/llama-vocab.cpp), which cuts numbers and
punctuation as none of these models do.
"""

from __future__ import annotations

from infer_os.models.graphs import graph_named

from .gguf_file import GgufHeader

#: The key that names a split.
SPLIT_KEY = "tokenizer.ggml.pre"


def usual_split(header: GgufHeader) -> str:
    """The split to take; "" if the file names one, needs none, or its graph is not ours."""
    metadata = header.metadata
    if metadata.get("tokenizer.ggml.model") != "gpt2" or metadata.get(SPLIT_KEY):
        return ""
    # files were written before llama.cpp had the key, with the families' tokenizers
    return graph_named(header.architecture).pre_tokenizer


def split_note(header: GgufHeader, split: str) -> str:
    """A note for the user on a split chosen because the file names none."""
    return (
        f"{header.path.name}: it does not say how text is split ({SPLIT_KEY}); split as {split}, "
        f"as {header.architecture} models are"
    )
