"""``infer-os chat``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
from . import loading, options
from .groups import grouped


@grouped(max_tokens=256, repeat_penalty=1.1)
def chat(
    *,
    model: options.Model,
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", help="A text that opens the conversation.")
    ] = "",
    style: Annotated[
        str,
        typer.Option(
            "--style", metavar="NAME", help="dialogue: User and Assistant; plain: no frame."
        ),
    ] = "dialogue",
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
    session: Annotated[
        Path | None,
        typer.Option(
            "--session",
            metavar="FILE",
            help="Continue the conversation in FILE, if there is one, and keep it there at the "
            "end.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Talk with a model. Ctrl-C ends a reply, Ctrl-D the program; /help lists commands."""
    from .. import conversation
    from ..models.styles import STYLES
    from ..runtime.errors import SettingsError
    from ..runtime.session import Session
    from ..runtime.session_file import check_name

    if style not in STYLES:
        raise SettingsError(f"--style {style}: expected {' or '.join(STYLES)}")
    if session is not None:
        check_name(session)
    saved = session is not None and session.exists()
    if saved and system:
        raise SettingsError(f"--system: the conversation in {session} has its own opening")
    engine, load_s = loading.load_engine(model, settings)
    _end_on_signals()
    try:
        talk = Session(engine, STYLES[style], system)
        console.note(
            f"{model.name}: {engine.info.source}, {engine.n_ctx} tokens of context, loaded in "
            f"{load_s:.1f} s. /help lists commands, Ctrl-D ends."
        )
        if session is not None and saved:
            conversation.load(talk, session)
            if talk.style.name != style:
                console.note(f"note: the saved conversation is of style {talk.style.name}")
        try:
            conversation.converse(talk, sampling, stops)
        finally:
            if session is not None and talk.changed and (talk.n_turns or saved):
                conversation.save(talk, session)
    finally:
        engine.close()


def _end_on_signals() -> None:
    """Let SIGTERM and a closed terminal end the program in order, so that a session is saved."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), end)
