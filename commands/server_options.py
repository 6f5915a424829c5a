"""The options of ``serve`` and ``ps``, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .typed_numbers import whole

Host = Annotated[
    str,
    typer.Option(
        "--host", metavar="ADDRESS",
        help="Address to listen at; one that other machines can reach needs a key.",
    ),
]  # fmt: skip
Port = Annotated[
    int,
    typer.Option(
        "--port", parser=whole, metavar="N", help="Port to listen at; 0 takes a free one."
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        "--queue", parser=whole, metavar="N",
        help="Texts that may wait for their turn; further ones get 429."
    ),
]  # fmt: skip
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", metavar="FILE",
        help="File with the key that requests must send (Authorization: Bearer KEY).",
        show_default="INFER_OS_API_KEY of the environment, else no key",
    ),
]  # fmt: skip
Cors = Annotated[
    list[str] | None,
    typer.Option(
        "--cors", metavar="ORIGIN",
        help="Let web pages of this origin send requests; may be given several times.",
        show_default=False,
    ),
]  # fmt: skip

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models", metavar="[NAME=]MODEL",
        help="Another model, loaded when a request names it; may be given several times.",
        show_default=False,
    ),
]  # fmt: skip
Idle = Annotated[
    str,
    typer.Option(
        "--idle", metavar="TIME",
        help="Unload a model that nobody has used for this long, such as 90s, 10m or 2h.",
        show_default="only when another one needs its memory",
    ),
]  # fmt: skip

Server = Annotated[str, typer.Option("--server", metavar="URL", help="The server to ask.")]
