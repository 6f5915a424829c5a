"""Where the command begins: streams and signals are set up before anything heavy is imported.

What happens before the first line of this module, while Python starts, is up to Python.
"""

from __future__ import annotations

import sys

from .errors import Error
from .terminal.signals import end_at_once, open_streams


def main() -> None:
    """Run the command line; see :func:`infer_os.cli.main` for its exit codes."""
    open_streams()
    end_at_once()
    try:
        from .cli import main as run
    except Error as error:  # the native library and this Python code do not belong together
        from .terminal import console

        console.fail(str(error))
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
