"""``infer-os generate``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import typer

from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
from ..store.wish import ModelWish
from ..terminal import console, render
from . import loading, options
from .adapting import check_one_adapter
from .beaming import answer_by_beams
from .groups import grouped
from .prompt_cache import PromptCache, kept_prompt, with_prompt_cache
from .remote import AskedServer, answer_from_server


@grouped()
def generate(
    *,
    invocation: typer.Context,
    model: ModelWish,
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    stops: StopSettings,
    sampling: SamplingSettings,
    settings: EngineSettings,
    beams: options.Beams = 0,
    prompt_cache: PromptCache = None,
    server: AskedServer = None,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt. The text goes to stdout, statistics to stderr.

    Example: infer-os generate model.gguf -p "It is a truth" -n 64 --seed 1
    """  # fmt: skip
    from ..runtime.errors import PromptError
    from ..runtime.generate import Generation, finished, stream_text
    from ..runtime.prompt import tokenize

    text = _read_prompt(prompt, file)
    if server is not None:
        request = "/v1/completions", {"model": model.text, "prompt": _as_text(text)}
        used = frozenset({"model", "prompt", "file"})
        answer_from_server(invocation, server, request, sampling, stops, used=used)
        return
    check_one_adapter(model)
    if beams > 1:
        if prompt_cache is not None:
            raise PromptError("--prompt-cache and --beams: give one of them")
        answer_by_beams(model, text, beams, sampling, stops, settings, as_json=as_json)
        return
    engine, load_s = loading.load_engine(model, with_prompt_cache(settings, prompt_cache))
    try:
        tokens = tokenize(engine.vocab, text, engine.n_ctx)
        state = Generation()
        pieces = []
        try:
            with (
                kept_prompt(prompt_cache, engine, tokens),
                closing(stream_text(engine, tokens, sampling, stops, state)) as chunks,
            ):
                for chunk in chunks:
                    pieces.append(chunk)
                    if not as_json:
                        console.answer(chunk, end="")
        except KeyboardInterrupt:
            pass  # between two tokens; inside a token the stream ends by itself
        completion = finished(state, "".join(pieces))
        if as_json:
            console.answer_json(render.completion_json(completion, engine, load_s))
        else:
            console.answer("")
            console.note(render.statistics_line(completion, load_s))
            if line := render.speculation_line(engine):
                console.note(line)
        console.notes(engine.take_notes())
    finally:
        engine.close()
    if completion.finish_reason.value == "interrupt":
        raise typer.Exit(130)


def _read_prompt(prompt: str | None, file: Path | None) -> str | bytes:
    from ..runtime.errors import PromptError
    from ..runtime.prompt import read_file, read_stream
    from .prompting import with_stdin

    if prompt is not None and file is not None:
        raise PromptError("--prompt and --file: give one of them")
    if prompt is not None:
        return with_stdin(prompt)
    if file is None and console.stdin_is_terminal():
        raise PromptError('no prompt: give --prompt "...", --file F, or pipe one in')
    if file is None or file == Path("-"):
        data = read_stream(console.stdin_stream())
    else:
        data = read_file(file)
    return data.removesuffix(b"\n")


def _as_text(prompt: str | bytes) -> str:
    """A prompt as JSON can hold it."""
    from ..runtime.errors import PromptError

    try:
        return prompt if isinstance(prompt, str) else prompt.decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt is not UTF-8 text at byte {error.start}") from None
