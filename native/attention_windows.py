"""The windows of a file's layers, from its header: checked, before anything relies on them."""

from __future__ import annotations

from infer_os.models.windows import WINDOW_GRAPH, Windows, windows_in

from .errors import GgufError
from .gguf_file import GgufHeader

_ALIBI = "attention.max_alibi_bias"
#: What llama.cpp is given so that its mask holds distances; our kernels do not apply it.
DISTANCES = {f"{WINDOW_GRAPH}.{_ALIBI}": 1.0}


def read_windows(header: GgufHeader) -> Windows | None:
    """Layers that see only a window; None: there are none.

    Raises:
        GgufError: what the file says of them cannot be.
    """
    try:
        windows = windows_in(header.metadata, header.count("block_count", default=1))
    except ValueError as error:
        raise GgufError(f"{header.path}: bad GGUF header: {error}") from None
    if windows is None:
        return None
    graph = header.architecture
    if graph != WINDOW_GRAPH or header.metadata.get(f"{graph}.{_ALIBI}"):
        raise GgufError(
            f"{header.path}: bad GGUF header: layers with windows on the graph {graph!r}; "
            f"expected {WINDOW_GRAPH!r} without {_ALIBI}"
        )
    return windows
