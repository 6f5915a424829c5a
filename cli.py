"""The command line: parse, make settings, call once, render.

Heavy imports (numpy, llama.cpp) happen inside the commands, so that ``--help`` stays quick.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__, console, options, render

if TYPE_CHECKING:
    from .runtime.engine import Engine
    from .runtime.session import Session
    from .runtime.settings import EngineSettings, SamplingSettings, StopSettings

app = typer.Typer(
    name="infer-os",
    help="Convert and run GPT-NeoX models on an ordinary CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_debug = False


def _show_version(asked: bool) -> None:
    if asked:
        console.answer(f"infer-os {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and llama.cpp's log.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    global _debug
    _debug = debug
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A checkpoint folder.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The GGUF file to write.",
            show_default="SOURCE's name and the type, in this folder",
        ),
    ] = None,
    type: Annotated[
        str,
        typer.Option(
            "--type", metavar="T", help="f32, f16, q8_0, q4_0, ... (a wrong one lists all)."
        ),
    ] = "q4_0",
    threads: options.Threads = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only plan: sizes and types, nothing is written.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Convert a Hugging Face checkpoint to one quantized GGUF file.

    Example: infer-os convert ./pythia-1.4b --type q4_0 -o pythia.gguf
    """  # fmt: skip
    from .convert.pipeline import ConvertSettings
    from .convert.pipeline import convert as run

    settings = ConvertSettings(source, output, type, threads, force, dry_run)
    with console.progress_bar(f"converting to {type}") as progress:
        report = run(settings, progress)
    if as_json:
        console.answer_json(render.report_json(report))
    else:
        render.show_report(report)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.", show_default=False)],
    as_json: options.Json = False,
) -> None:
    """Show what a GGUF file holds: metadata, tensors with types and sizes, bits per weight."""
    from .native.gguf_file import read_gguf_header

    header = read_gguf_header(file)
    if as_json:
        console.answer_json(render.header_json(header))
    else:
        render.show_header(header)


@app.command()
def generate(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p", "--prompt", metavar="TEXT", help="Text to continue.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "-f",
            "--file",
            metavar="F",
            help="Read the prompt from a file; - is stdin.",
            show_default="stdin, if it is no terminal",
        ),
    ] = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    context: options.Context = 0,
    load: options.Load = "mmap",
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt. The text goes to stdout, statistics to stderr.

    Example: infer-os generate model.gguf -p "It is a truth" -n 64 --seed 1
    """  # fmt: skip
    from .runtime.generate import Generation, finished, stream_text
    from .runtime.settings import EngineSettings, SamplingSettings, StopSettings

    sampling = SamplingSettings(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    stops = StopSettings(max_tokens, tuple(stop or ()))
    settings = EngineSettings(context, load, threads)
    text = _read_prompt(prompt, file)
    engine, load_s = load_engine(model, settings)
    try:
        tokens = engine.vocab.tokenize(text)
        state = Generation()
        pieces = []
        try:
            for chunk in stream_text(engine, tokens, sampling, stops, state):
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
    finally:
        engine.close()
    if completion.finish_reason.value == "interrupt":
        raise typer.Exit(130)


@app.command()
def chat(
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
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.1,
    seed: options.Seed = None,
    stop: options.Stop = None,
    context: options.Context = 0,
    load: options.Load = "mmap",
    threads: options.Threads = 0,
) -> None:
    """Talk with a model. Ctrl-C ends a reply, Ctrl-D the program; /help lists commands."""
    from .models.styles import STYLES
    from .runtime.errors import SettingsError
    from .runtime.session import Session
    from .runtime.settings import EngineSettings, SamplingSettings, StopSettings

    sampling = SamplingSettings(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    stops = StopSettings(max_tokens, tuple(stop or ()))
    settings = EngineSettings(context, load, threads)
    if style not in STYLES:
        raise SettingsError(f"--style {style}: expected {' or '.join(STYLES)}")
    engine, load_s = load_engine(model, settings)
    try:
        session = Session(engine, STYLES[style], system)
        console.note(
            f"{model.name}: {engine.info.source}, {engine.n_ctx} tokens of context, loaded in "
            f"{load_s:.1f} s. /help lists commands, Ctrl-D ends."
        )
        _converse(session, sampling, stops)
    finally:
        engine.close()


_CHAT_HELP = """/help   this list
/reset  forget the conversation; the system prompt stays
/stats  what the last reply cost
/quit   end (so does Ctrl-D)
Ctrl-C  end the reply"""


def _converse(session: Session, sampling: SamplingSettings, stops: StopSettings) -> None:
    from .native.errors import NativeError
    from .runtime.errors import PromptError
    from .runtime.generate import finished

    for line in console.read_lines("> "):
        match line.strip() if line is not None else None:
            case None:
                console.note("Ctrl-D or /quit ends the program.")
            case "":
                continue
            case "/quit":
                return
            case "/help":
                console.note(_CHAT_HELP)
            case "/reset":
                session.reset()
                console.note("The conversation starts anew.")
            case "/stats":
                console.note(render.statistics_line(finished(session.last, "")))
            case command if command.startswith("/"):
                console.note(f"{command.split()[0]}: no such command; /help lists them")
            case message:
                try:
                    _print_reply(session, message, sampling, stops)
                except (PromptError, NativeError) as error:
                    console.fail(str(error))


def _print_reply(
    session: Session, message: str, sampling: SamplingSettings, stops: StopSettings
) -> None:
    reply = session.reply(message, sampling, stops)
    started = False
    try:
        for chunk in reply:
            # models start a reply with the space that follows the colon
            text = chunk if started else chunk.lstrip()
            started = started or bool(text)
            console.answer(text, end="")
    except KeyboardInterrupt:
        pass
    finally:
        reply.close()
    console.answer("")
    if session.dropped_turns:
        console.note(
            f"(the context is full: the oldest {session.dropped_turns} turns were dropped)"
        )
    if session.last.finish_reason is not None and session.last.finish_reason.value == "interrupt":
        console.note("(stopped)")


@app.command()
def demo(
    threads: options.Threads = 0,
) -> None:
    """Convert the bundled model to Q8_0 and Q4_0, write a text with each, compare the two."""
    import tempfile

    from .demo import run_demo

    with tempfile.TemporaryDirectory(prefix="infer-os-demo-") as folder:
        run_demo(Path(folder), threads)


def load_engine(path: Path, settings: EngineSettings) -> tuple[Engine, float]:
    """Load a GGUF file; its warnings go to stderr. Returns the engine and the seconds it took."""
    from .runtime.engine import LlamaEngine
    from .runtime.errors import SettingsError

    if path.is_dir():
        raise SettingsError(
            f"{path}: a folder; convert it first: infer-os convert {path} -o model.gguf"
        )
    started = time.perf_counter()
    engine = LlamaEngine(path, settings)
    for text in engine.info.notes:
        console.note(f"note: {text}")
    return engine, time.perf_counter() - started


def _read_prompt(prompt: str | None, file: Path | None) -> str | bytes:
    from .runtime.errors import PromptError

    if prompt is not None and file is not None:
        raise PromptError("--prompt and --file: give one of them")
    if prompt is not None:
        return prompt
    if file is None and sys.stdin.isatty():
        raise PromptError('no prompt: give --prompt "...", --file F, or pipe one in')
    try:
        data = sys.stdin.buffer.read() if file in (None, Path("-")) else file.read_bytes()
    except OSError as error:
        raise PromptError(f"{file}: cannot be read: {error.strerror}") from error
    return data.removesuffix(b"\n")


def main() -> None:
    """Entry point: exit codes 0 done, 1 a failure while running, 2 the user's input, 130 Ctrl-C."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # the reader is gone: nothing more to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if _debug:
            raise
        code = _explain(error)
    sys.exit(code)


def _explain(error: Exception) -> int:
    """Print an error as one line; return the exit code."""
    if isinstance(error, typer.Abort):
        return 130
    # typer's own complaints about options
    show, exit_code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is not None and exit_code is not None:
        show()
        return int(exit_code)
    kind = type(error)
    if not kind.__module__.startswith(f"{__package__}."):
        console.fail(f"{kind.__name__}: {error} (a bug: --debug shows where)")
        return 1
    console.fail(str(error))
    return 1 if any(base.__name__ == "DecodeError" for base in kind.__mro__) else 2


if __name__ == "__main__":
    main()
