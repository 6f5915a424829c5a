"""``infer-os run``."""

from __future__ import annotations

import typer

from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
from ..store.wish import ModelWish
from ..terminal import console
from . import options
from .adapting import check_one_adapter
from .groups import grouped
from .remote import AskedServer, answer_from_server
from .talk import CHAT_DEFAULTS, TalkSettings, conversation_on


@grouped(**CHAT_DEFAULTS)
def run(
    *,
    invocation: typer.Context,
    model: options.RunModel = None,
    prompt: options.Message = None,
    model_option: options.ModelAgain = None,
    use_8bit: options.Use8bit = False,
    use_4bit: options.Use4bit = False,
    type: options.ModelType = "",
    lora: options.Lora = None,
    adapter: options.Adapter = None,
    interactive: options.Interactive = False,
    prompt_option: options.MessageAgain = None,
    talk: TalkSettings,
    stops: StopSettings,
    sampling: SamplingSettings,
    settings: EngineSettings,
    server: AskedServer = None,
) -> None:
    """Run a model by its name: download, convert, answer. Later calls start quickly.

    Example: infer-os run EleutherAI/gpt-neox-20b "What is a quasar?"
    """  # fmt: skip
    from ..runtime.errors import PromptError
    from ..terminal.conversation import answer_one, converse, history_file

    name, prompt = _named(model, prompt, model_option, prompt_option)
    if server is not None:
        if prompt is None and console.stdin_is_terminal():
            raise PromptError("nothing to answer: give a PROMPT; --server begins no conversation")
        messages = [{"role": "system", "content": talk.system}] if talk.system else []
        messages.append({"role": "user", "content": _read_message(prompt)})
        request = "/v1/chat/completions", {"model": name, "messages": messages}
        used = frozenset({"model", "model_option", "prompt", "prompt_option", "system"})
        answer_from_server(invocation, server, request, sampling, stops, used=used)
        return
    kind = _chosen_type(use_8bit, use_4bit, type)
    wish = ModelWish(name, kind, tuple(lora or ()), tuple(adapter or ()))
    interactive = interactive or (prompt is None and console.stdin_is_terminal())
    if not interactive:
        check_one_adapter(wish)
    message = prompt if interactive else _read_message(prompt)
    with conversation_on(wish, talk, settings) as session:
        stopped = message is not None and answer_one(session, message, sampling, stops)
        if interactive:
            console.note("/help lists commands, Ctrl-D ends.")
            converse(session, sampling, stops, history_file())
    if stopped and not interactive:
        raise typer.Exit(130)


def _named(
    model: str | None, prompt: str | None, model_option: str | None, prompt_option: str | None
) -> tuple[str, str | None]:
    """MODEL and PROMPT, however they were given."""
    from ..runtime.errors import SettingsError

    if model_option is not None and prompt is None:
        model, prompt = None, model  # with --model, the one word is the prompt
    elif model_option is not None:
        raise SettingsError(f"MODEL {model} and --model {model_option}: give one of them")
    if prompt is not None and prompt_option is not None:
        what = "is a PROMPT, as --model names the MODEL" if model_option else "is a PROMPT"
        raise SettingsError(f"{prompt!r} {what}; drop it, or --prompt")
    name = model_option if model is None else model
    if name is None:
        raise SettingsError(
            "MODEL is missing: give a catalog name (gpt-j-6B), a hub id, a folder or a GGUF file; "
            "infer-os models lists the known ones"
        )
    return name, prompt_option if prompt is None else prompt


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
    from .prompting import with_stdin

    message = with_stdin(prompt).decode("utf-8", "replace")
    if not message.strip():
        raise PromptError(
            "the prompt is empty" if prompt is not None else
            "nothing to answer: give a PROMPT, pipe in a text, or add --interactive"
        )  # fmt: skip
    return message.rstrip("\n")
