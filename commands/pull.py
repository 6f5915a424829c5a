"""``infer-os pull``."""

from __future__ import annotations

from ..sizes import size_text
from ..store.wish import ModelWish
from ..terminal import console
from . import loading, options
from .groups import grouped


@grouped("adapter")
def pull(*, model: ModelWish, as_json: options.Json = False) -> None:
    """Download and convert a model into the cache; print its path.

    After Ctrl-C or a broken connection, the same command continues.

    Example: infer-os pull gpt-j-6B --type q8_0
    """  # fmt: skip
    from ..native.graph_check import read_model_header

    path = loading.fetch(model)
    read_model_header(path)  # a file that was there is not ours
    n_bytes = path.stat().st_size
    if as_json:
        console.answer_json({"path": str(path), "bytes": n_bytes})
        return
    console.answer(str(path))
    kind = f" --type {model.type}" if model.type else ""
    console.note(f"{size_text(n_bytes)}; infer-os run {model.text}{kind} runs it")
