"""The command line: the app, its commands, and what an error becomes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from . import __version__
from .commands import (
    batch,
    bench,
    chat,
    convert,
    demo,
    evaluate,
    generate,
    inspect,
    models,
    options,
    plan,
    pull,
    run,
)  # fmt: skip
from .terminal import console

app = typer.Typer(
    name="infer-os",
    help="Convert and run GPT-J, GPT-NeoX, BLOOM and GPT-2 models on an ordinary CPU.",
    no_args_is_help=True,
    add_completion=True,
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


for command in (
    run.run, pull.pull, chat.chat, generate.generate, batch.batch, convert.convert,
    inspect.inspect, plan.plan, plan.system, bench.bench, demo.demo,
):  # fmt: skip
    app.command()(command)
app.command("eval")(evaluate.evaluate)
app.add_typer(models.app, name="models")


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
    console.fail(options.spelled(error))
    shortage = getattr(error, "plan", None)
    if shortage is not None:
        from .terminal.render_plan import show_plan

        show_plan(shortage, stderr=True)
    # most errors are about the user's input; those that come while running say so themselves
    return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
