"""``infer-os inspect``."""

from __future__ import annotations

from ..store.wish import ModelWish
from ..terminal import console, render
from . import options


def inspect(
    model: options.CachedModel, type: options.CachedType = "", as_json: options.Json = False
) -> None:
    """Show the metadata and the tensors of a GGUF file.

    Tensors have their types, sizes and bits per weight. Nothing is downloaded or converted.

    Example: infer-os inspect gpt-j-6B
    """  # fmt: skip
    from ..native.graph_check import read_model_header
    from ..store.fetch import cached_file

    header = read_model_header(cached_file(ModelWish(model, type)))
    if as_json:
        console.answer_json(render.header_json(header))
    else:
        render.show_header(header)
