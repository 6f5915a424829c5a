"""``--prompt-cache``: what is computed of a prompt, kept in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.settings import EngineSettings, Extra
from ..terminal import console

if TYPE_CHECKING:
    from ..runtime.interface import Engine

PromptCache = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache", metavar="FILE",
        help="Keep the computed prompt (in a batch: what all prompts begin with) in FILE; a later "
        "prompt with the same beginning need not compute it again.",
        show_default=False,
    ),
]  # fmt: skip


def with_prompt_cache(settings: EngineSettings, path: Path | None) -> EngineSettings:
    """The settings, with what keeping a prompt adds to the plan.

    Raises:
        SessionError: no prompt can be kept under this name.
    """
    if path is None:
        return settings
    from ..runtime.chat.prompt_file import check_prompt_file

    check_prompt_file(path)
    return replace(settings, extras=settings.extras | {Extra.SESSION})


@contextmanager
def kept_prompt(path: Path | None, engine: Engine, prompt: Sequence[int]) -> Iterator[None]:
    """Take what a file has of a prompt before a text is written, and keep it afterwards.

    The file is written again if it held less of the prompt, or another one.
    """
    if path is None:
        yield
        return
    from ..cache import cache_folder
    from ..runtime.chat.prompt_file import load_prompt, save_prompt

    cache = cache_folder()
    if problem := load_prompt(path, engine, prompt, cache):
        console.note(f"note: {problem}")
    found = list(engine.tokens)
    yield
    if found != list(prompt[:-1]) and (problem := save_prompt(path, engine, prompt, cache)):
        console.note(f"note: {problem}")
