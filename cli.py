"""The command line: the app, its commands, and what an error becomes."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from . import __version__
from .commands.index import MANNERS, Program
from .errors import shortened
from .terminal import console
from .terminal.signals import ending_in_order, open_streams

app = typer.Typer(
    name="infer-os",
    help="Convert and run GPT-J, GPT-NeoX, BLOOM and GPT-2 models on an ordinary CPU.",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    **MANNERS,
)

_debug = False
#: A file's name in an error, and what is shown of a longer one.
_LONGEST_NAME, _LONGEST_SHOWN = 1000, 80


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


def main() -> None:
    """Entry point: exit codes 0 done, 1 a failure while running, 2 the user's input.

    130 is Ctrl-C, 143 SIGTERM, 129 a closed terminal (SIGHUP). A closed pipe is a silent
    failure: the command framework itself exits with 1.
    """
    open_streams()
    code: int | str | None
    try:
        with ending_in_order():
            try:
                code = app(standalone_mode=False)
            except SystemExit as end:
                code = end.code
            except KeyboardInterrupt:
                code = 130
            except Exception as error:
                if _debug:
                    raise
                code = _explain(error)
    except (KeyboardInterrupt, SystemExit) as end:
        # a signal while an error was being reported
        code = end.code if isinstance(end, SystemExit) else 130
    console.let_go_of_streams()
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
        console.fail(_with_a_next_step(complaint()))
        return 2
    if isinstance(error, OSError):
        console.fail(_os_error_text(error))
        # a name that no file can have is the user's
        return 2 if error.errno == errno.ENAMETOOLONG else 1
    if isinstance(error, MemoryError):
        said = str(error)
        console.fail(
            f"not enough memory{': ' + said if said else ''} (ulimit -v, or a container's?)"
        )
        return 1
    if not kind.__module__.startswith(f"{__package__}."):
        console.fail(f"{kind.__name__}: {error} (a bug: --debug shows where)")
        return 1
    from .commands.options import spelled

    console.fail(spelled(error))
    shortage = getattr(error, "plan", None)
    if shortage is not None:
        from .terminal.render_plan import show_plan

        show_plan(shortage, stderr=True)
    # most errors are about the user's input; failures at run time say so themselves
    return int(getattr(error, "exit_code", 2))


def _with_a_next_step(complaint: str) -> str:
    if complaint.startswith("No such command") and "Did you mean" not in complaint:
        return complaint.rstrip(".") + "; --help lists them"
    return complaint


def _os_error_text(error: OSError) -> str:
    """What failed where. Files are opened by name; the command framework prints its help."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n is not None]
        return f"{' -> '.join(map(_shortened, names))}: {reason}"
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = str(innermost.tb_frame.f_globals.get("__name__", "")) if innermost else ""
    if module.partition(".")[0] in ("click", "typer"):
        return f"standard output: {reason}"
    return f"{reason} (--debug shows where)"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else shortened(name, _LONGEST_SHOWN)


if __name__ == "__main__":
    main()
