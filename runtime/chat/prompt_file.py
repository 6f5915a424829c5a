"""A prompt's KV rows in a file, so that the next prompt that begins alike starts behind them.

The file is that of a session (:mod:`.session_file`) without turns, and of a kind of its own: it is
keyed, checked and written in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from infer_os.native.errors import StateError

from ..errors import SessionError
from ..interface import Engine, shared_prefix
from .session import SessionRecord
from .session_file import (
    EngineRows,
    Header,
    RowKeeper,
    check_name,
    name_model,
    read_rows,
    write_rows,
)

_MAGIC = b"INFEROS-PROMPT\0\0"


def check_prompt_file(path: Path) -> None:
    """See, before a model is loaded, that a prompt can be kept under this name.

    Raises:
        SessionError: another kind of file is in the way, or no file can have that name.
    """
    check_name(path, _MAGIC, "prompt cache")


def load_prompt(path: Path, engine: Engine, prompt: Sequence[int], cache_folder: Path) -> str:
    """Let an engine hold what a file has of a prompt; returns why it does not, "" if it does.

    A file that is of no use, since it was changed, or is of another model, llama.cpp or prompt, is
    no error: the prompt is computed. Where there is no file yet, there is nothing to say.
    """

    def check(header: Header) -> None:
        if not shared_prefix(header.tokens, prompt):
            raise SessionError(f"{path}: of a prompt that begins otherwise")

    _, problem = take_rows(path, EngineRows(engine), cache_folder, check)
    return f"{problem}; the prompt is computed" if problem else ""


def take_rows(
    path: Path, keeper: RowKeeper, cache_folder: Path, check: Callable[[Header], None] | None = None
) -> tuple[list[int], str]:
    """Let a keeper hold what a file has; returns its tokens, and why there are none.

    Where there is no file yet, there is nothing to say.
    """
    if not path.exists():
        return [], ""
    try:
        header = read_rows(path, keeper, cache_folder, check or (lambda _: None), _MAGIC)
    except SessionError as error:
        return [], str(error)
    return header.tokens, ""


def save_prompt(path: Path, engine: Engine, prompt: Sequence[int], cache_folder: Path) -> str:
    """Keep the rows of a prompt that an engine holds; returns why that failed, "" if it did not.

    The file appears when it is complete. Its last token is left out: it is computed again anyway.
    """
    held = list(prompt[: min(shared_prefix(engine.tokens, prompt), len(prompt) - 1)])
    return keep_rows(path, EngineRows(engine), held, cache_folder) if held else ""


def keep_rows(path: Path, keeper: RowKeeper, tokens: list[int], cache_folder: Path) -> str:
    """Write what a keeper holds of these tokens; returns why that failed, "" if it did not."""
    try:
        model_id = name_model(keeper.path)
        nothing = SessionRecord("", "", ())
        write_rows(path, keeper, nothing, model_id, tokens, cache_folder, _MAGIC)
    except (SessionError, StateError) as error:
        return f"{error}; the prompt is not kept"
    return ""
