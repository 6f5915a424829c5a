"""The command line: parse, make settings, call once, render.

Heavy imports (numpy, llama.cpp) happen inside the commands, so that ``--help`` stays quick.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__, console, options, render

if TYPE_CHECKING:
    from .convert.report import ConversionReport
    from .convert.settings import ConvertSettings
    from .runtime.engine import Engine
    from .runtime.settings import EngineSettings

app = typer.Typer(
    name="infer-os",
    help="Convert and run GPT-J, GPT-NeoX, BLOOM and GPT-2 models on an ordinary CPU.",
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
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, a catalog name (gpt-j-6B) or a hub id (EleutherAI/gpt-j-6B);"
            " a folder of that name wins.",
            show_default=False,
        ),
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
            "--type",
            metavar="T",
            help="f32, f16, q8_0, q4_0, ... (a wrong one lists all); auto: the finest that fits "
            "into this machine's memory.",
        ),
    ] = "q4_0",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT",
            help="Run the model over a text first and weigh the quantization by its activations; "
            "the text's end tells what that was worth.",
            show_default=False,
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="An importance matrix (llama.cpp's GGUF form) to weigh with; with --calibrate, "
            "the file to keep it in.",
            show_default=False,
        ),
    ] = None,
    rotate: Annotated[
        bool,
        typer.Option(
            "--fold-rotation",
            help="Fold a rotation into the attention weights, so that a quantized KV cache loses "
            "less; the model computes the same.",
        ),
    ] = False,
    threads: options.Threads = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only plan: sizes and types, nothing is written.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read the file back, compare it with its source, run a few tokens."
        ),
    ] = False,
    keep_source: Annotated[
        bool,
        typer.Option(
            "--keep-source",
            help="Keep what is downloaded, in ~/.cache/infer-os or INFER_OS_CACHE; else a shard "
            "goes when it is converted.",
        ),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="R",
            help="Branch, tag or commit on the hub.",
            show_default="the catalog's, else main",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Convert a Hugging Face checkpoint to one quantized GGUF file.

    A model on the hub is downloaded shard by shard; interrupted, the same command continues.

    Example: infer-os convert EleutherAI/gpt-j-6B --type q4_0 -o gpt-j.gguf
    """  # fmt: skip
    from .convert.settings import ConvertSettings
    from .convert.source import find_source

    automatic = type.lower() == "auto"
    settings = ConvertSettings(
        find_source(source, revision), output, "q4_0" if automatic else type, threads, force,
        dry_run, verify, keep_source, None if calibrate else imatrix, rotate,
    )  # fmt: skip
    if automatic:
        from .planning import finest_type

        settings = replace(settings, type=finest_type(source, revision))
    try:
        report = _run_conversion(settings, calibrate, imatrix)
    except KeyboardInterrupt:
        if not isinstance(settings.source, Path) and not dry_run:
            console.note("interrupted; the same command continues where it stopped")
        raise
    if automatic:
        note = f"type: auto: {settings.type} is the finest that fits into this machine's memory"
        report = replace(report, notes=(note, *report.notes))
    if as_json:
        console.answer_json(render.report_json(report))
    else:
        render.show_report(report)


def _run_conversion(
    settings: ConvertSettings, calibrate: Path | None, imatrix: Path | None
) -> ConversionReport:
    from .convert.pipeline import convert as run

    if calibrate is None:
        with console.progress_bar(f"converting to {settings.type}") as progress:
            return run(settings, progress)
    from .convert.calibrated import CalibrationSettings, convert_calibrated

    with console.progress_steps() as steps:
        return convert_calibrated(settings, CalibrationSettings(calibrate, imatrix), steps)


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
    kv: options.Kv = "",
    kv_budget: options.KvBudget = "",
    load: options.Load = "mmap",
    memory: options.Memory = "",
    prefetch: options.Prefetch = False,
    drop_pages: options.DropPages = False,
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
    settings = EngineSettings(
        context, load, threads, kv, _bytes("--kv-budget", kv_budget), _bytes("--memory", memory),
        prefetch, drop_pages,
    )  # fmt: skip
    text = _read_prompt(prompt, file)
    engine, load_s = load_engine(model, settings)
    try:
        tokens = engine.vocab.tokenize(text)
        state = Generation()
        pieces = []
        try:
            with closing(stream_text(engine, tokens, sampling, stops, state)) as chunks:
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
        console.notes(engine.take_notes())
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
    kv: options.Kv = "",
    kv_budget: options.KvBudget = "",
    load: options.Load = "mmap",
    memory: options.Memory = "",
    prefetch: options.Prefetch = False,
    drop_pages: options.DropPages = False,
    threads: options.Threads = 0,
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
    from . import conversation
    from .models.styles import STYLES
    from .runtime.errors import SettingsError
    from .runtime.session import Session
    from .runtime.session_file import check_name
    from .runtime.settings import EngineSettings, SamplingSettings, StopSettings

    sampling = SamplingSettings(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    stops = StopSettings(max_tokens, tuple(stop or ()))
    settings = EngineSettings(
        context, load, threads, kv, _bytes("--kv-budget", kv_budget), _bytes("--memory", memory),
        prefetch, drop_pages,
    )  # fmt: skip
    if style not in STYLES:
        raise SettingsError(f"--style {style}: expected {' or '.join(STYLES)}")
    if session is not None:
        check_name(session)
    saved = session is not None and session.exists()
    if saved and system:
        raise SettingsError(f"--system: the conversation in {session} has its own opening")
    engine, load_s = load_engine(model, settings)
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


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, a checkpoint folder, a catalog name (gpt-j-6B) or a hub id.",
            show_default=False,
        ),
    ],
    memory: options.Memory = "",
    context: options.Context = 0,
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="T", help="Type of the weights.", show_default="chosen"),
    ] = None,
    kv: options.PlanKv = "auto",
    kv_budget: options.KvBudget = "",
    load: options.Load = "",
    draft: options.PlanDraft = "none",
    parallel: options.PlanParallel = 1,
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Say what a model will take, what fits, and what to choose. Nothing is loaded or downloaded.

    Example: infer-os plan gpt-j-6B --memory 8G --context 2048
    """  # fmt: skip
    from . import render_plan
    from .planning import PlanRequest, make_answer
    from .runtime.settings import EngineSettings

    settings = EngineSettings(
        context, load or "mmap", threads, kv, _bytes("--kv-budget", kv_budget),
        _bytes("--memory", memory),
    )  # fmt: skip
    answer = make_answer(PlanRequest(model, settings, load, type, draft, parallel))
    if as_json:
        console.answer_json(render_plan.plan_json(answer))
    else:
        render_plan.show_answer(answer)


@app.command()
def system(as_json: options.Json = False) -> None:
    """Check this machine: memory, limits, processor, bandwidth; rank the known models on it."""
    from . import render_plan
    from .planning import make_report

    report = make_report()
    if as_json:
        console.answer_json(render_plan.system_json(report))
    else:
        render_plan.show_system(report)


@app.command()
def demo(
    threads: options.Threads = 0,
) -> None:
    """Convert the bundled model to Q8_0 and Q4_0, write a text with each, compare the two."""
    import tempfile

    from .demo import run_demo
    from .runtime.settings import EngineSettings

    EngineSettings(threads=threads)  # before the first conversion

    with tempfile.TemporaryDirectory(prefix="infer-os-demo-") as folder:
        run_demo(Path(folder), threads)


def _bytes(option: str, size: str) -> int:
    from .runtime.sizes import parse_size

    return parse_size(option, size) if size else 0


def _end_on_signals() -> None:
    """Let SIGTERM and a closed terminal end the program in order, so that a session is saved."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), end)


def load_engine(path: Path, settings: EngineSettings) -> tuple[Engine, float]:
    """Load a GGUF file; its warnings go to stderr. Returns the engine and the seconds it took."""
    from .models.catalog import find_model
    from .runtime.engine import LlamaEngine
    from .runtime.errors import SettingsError

    if path.is_dir():
        raise SettingsError(
            f"{path}: a folder; convert it first: infer-os convert {path} -o model.gguf"
        )
    if not path.exists() and find_model(str(path)):
        raise SettingsError(
            f"{path}: no such file; convert the model of that name first: infer-os convert {path}"
        )
    started = time.perf_counter()
    with console.progress_bar("prefetching") if settings.prefetch else nullcontext() as warmed:
        engine = LlamaEngine(path, settings, warmed=warmed)
    console.notes(engine.info.notes)
    return engine, time.perf_counter() - started


def _read_prompt(prompt: str | None, file: Path | None) -> str | bytes:
    from .runtime.errors import PromptError

    if prompt is not None and file is not None:
        raise PromptError("--prompt and --file: give one of them")
    if prompt is not None:
        return os.fsencode(prompt)
    if file is None and console.stdin_is_terminal():
        raise PromptError('no prompt: give --prompt "...", --file F, or pipe one in')
    try:
        data = console.read_stdin() if file in (None, Path("-")) else file.read_bytes()
    except OSError as error:
        raise PromptError(f"{file}: cannot be read: {error.strerror}") from error
    return data.removesuffix(b"\n")


def main() -> None:
    """Entry point: exit codes 0 done, 1 a failure while running, 2 the user's input, 130 Ctrl-C.

    A closed pipe is a failure that needs no words: the command framework itself exits with 1.
    """
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if _debug:
            raise
        code = _explain(error)
    sys.exit(code)


def _explain(error: Exception) -> int:
    """Print an error as one line; return the exit code."""
    if isinstance(error, typer.Abort):
        return 130
    kind = type(error)
    if kind.__name__ == "NoArgsIsHelpError":
        console.note(str(error))
        return 2
    # typer's own complaints about options
    complaint = getattr(error, "format_message", None)
    if complaint is not None:
        console.fail(complaint())
        return 2
    if isinstance(error, OSError) and error.filename is None:
        # every file of ours is opened by a name: this is one of the standard streams
        console.fail(f"standard output: {error.strerror}")
        return 1
    if not kind.__module__.startswith(f"{__package__}."):
        console.fail(f"{kind.__name__}: {error} (a bug: --debug shows where)")
        return 1
    console.fail(str(error))
    shortage = getattr(error, "plan", None)
    if shortage is not None:
        from .render_plan import show_plan

        show_plan(shortage, stderr=True)
    # most errors are about the user's input; those that come while running say so themselves
    return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
