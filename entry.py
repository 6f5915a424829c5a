"""Where the command begins: what must be set before anything heavy is imported.

What happens before the first line of this module, while Python starts, is up to Python.
"""

from __future__ import annotations

import gc
import os
import sys

from .busy import let_openmp_sleep
from .errors import Error
from .terminal.signals import end_at_once, open_streams

#: New objects between two searches for garbage. With Python's own 700, everything is searched again
#: and again while modules are imported, all of which stay: a tenth of the time to start.
NEW_OBJECTS = 20_000


def main() -> None:
    """Run the command line; see :func:`infer_os.cli.main` for its exit codes."""
    gc.set_threshold(NEW_OBJECTS)
    open_streams()
    end_at_once()
    let_openmp_sleep(sys.argv[1:], os.environ)
    try:
        from .cli import main as run
    except Error as error:  # the native library and this Python code do not belong together
        from .terminal import console

        console.fail(str(error))
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
