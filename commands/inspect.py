"""``infer-os inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..terminal import console, render
from . import options


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.", show_default=False)],
    as_json: options.Json = False,
) -> None:
    """Show what a GGUF file holds: metadata, tensors with types and sizes, bits per weight."""
    from ..native.gguf_file import read_gguf_header

    header = read_gguf_header(file)
    if as_json:
        console.answer_json(render.header_json(header))
    else:
        render.show_header(header)
