"""``infer-os run``."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console
from ..model_store import ModelWish
from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
from . import completing, options
from .groups import grouped
from .talk import TalkSettings, conversation_on


@grouped(max_tokens=256, repeat_penalty=1.1)
def run(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A catalog name (gpt-j-6B), a hub id (EleutherAI/gpt-j-6B), a checkpoint folder "
            "or a GGUF file. What is no file yet is converted once, into the cache.",
            show_default=False,
            autocompletion=completing.model_names,
        ),
    ],
    use_8bit: Annotated[
        bool,
        typer.Option(
            "--use-8bit", help="As --type q8_0: twice the size of 4 bits, no loss to be seen."
        ),
    ] = False,
    use_4bit: Annotated[
        bool,
        typer.Option(
            "--use-4bit",
            help="As --type q4_0: the 4 bits that compute fastest on a CPU; --type q4_k_m loses "
            "less, and is slower.",
        ),
    ] = False,
    type: options.ModelType = "",
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Talk, as chat does; a --prompt opens the talk.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="Answer this message and end.",
            show_default="stdin, if it is no terminal",
        ),
    ] = None,
    talk: TalkSettings,
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
) -> None:
    """From a name to a conversation: download, convert, answer. All but the first call is quick.

    Example: infer-os run --model EleutherAI/gpt-neox-20b --use-8bit --interactive
    """  # fmt: skip
    from ..conversation import answer_one, converse, history_file

    wish = ModelWish(model, _chosen_type(use_8bit, use_4bit, type))
    message = prompt if interactive else _read_message(prompt)
    with conversation_on(wish, talk, settings) as session:
        stopped = message is not None and answer_one(session, message, sampling, stops)
        if interactive:
            console.note("/help lists commands, Ctrl-D ends.")
            converse(session, sampling, stops, history_file())
    if stopped and not interactive:
        raise typer.Exit(130)


def _chosen_type(use_8bit: bool, use_4bit: bool, type: str) -> str:
    from ..runtime.errors import SettingsError

    given = [
        (option, kind)
        for option, kind, wanted in (
            ("--use-8bit", "q8_0", use_8bit), ("--use-4bit", "q4_0", use_4bit),
            (f"--type {type}", type, type),
        )
        if wanted
    ]  # fmt: skip
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(option for option, _ in given)}: give one of them")
    return given[0][1] if given else ""


def _read_message(prompt: str | None) -> str:
    from ..runtime.errors import PromptError

    if prompt is None:
        if console.stdin_is_terminal():
            raise PromptError(
                'nothing to answer: give --prompt "...", pipe a text in, or add --interactive'
            )
        prompt = console.read_stdin().decode("utf-8", "replace")
    if not prompt.strip():
        raise PromptError("the prompt is empty")
    return prompt.rstrip("\n")
