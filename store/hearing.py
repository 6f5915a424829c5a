"""What a program hears of the store and of engines: log records, and calls for progress.

Notes and warnings go to the logger ``infer_os``, that of the whole package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ..native.interrupt import python_interrupts
from .reporter import Reporter

#: Gets every record of the logger ``infer_os`` and those below it.
LogCallback = Callable[[logging.LogRecord], None]
#: Gets what is done, and bytes done and in all.
ProgressCallback = Callable[[str, int, int], None]

_logger = logging.getLogger("infer_os")


def warn(notes: Iterable[str]) -> None:
    """Log what a user should know."""
    for note in notes:
        _logger.warning("%s", note)


def answers(
    make: Callable[[], Any], records: Iterable[Any], *, ordered: bool
) -> Generator[Any, None, None]:
    """What an engine says of records, which is made for them; its notes are logged.

    With ``ordered``, in the order of the records, else as they are finished.
    """
    from ..runtime.batch.order import in_order

    with closing(make()) as engine:
        warn(engine.take_notes())
        results = in_order(engine.run, records) if ordered else engine.run(records)
        with closing(results), python_interrupts():
            for result in results:
                warn(engine.take_notes())
                yield result


def heard(
    chunks: Generator[str, None, None],
    take_notes: Callable[[], Iterable[str]],
    end: Callable[[str], None],
) -> Generator[str, None, None]:
    """A text, chunk by chunk; ``end`` gets all of it, or what there is if it is closed early.

    The notes of what writes it are logged.
    """
    pieces: list[str] = []
    try:
        for chunk in chunks:
            pieces.append(chunk)
            yield chunk
    except GeneratorExit:
        # what it has drawn can still be queried
        chunks.close()
        end("".join(pieces))
        raise
    finally:
        chunks.close()
        warn(take_notes())
    end("".join(pieces))


def log_reporter(on_progress: ProgressCallback | None) -> Reporter:
    """Where the store tells what it does: the log, and a callback for bytes."""

    @contextmanager
    def bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
        yield (lambda done, total: on_progress(label, done, total)) if on_progress else None

    def note(text: str) -> None:
        if text.startswith("note: "):
            warn([text.removeprefix("note: ")])
        else:
            _logger.info("%s", text)

    return Reporter(note, bar)


class _Listener(logging.Handler):
    """Hands records to a callback."""

    def __init__(self, callback: LogCallback) -> None:
        super().__init__()
        self._callback = callback

    def emit(self, record: logging.LogRecord) -> None:
        """Call it; what it raises is logging's to handle."""
        try:
            self._callback(record)
        except Exception:
            self.handleError(record)


@contextmanager
def listening(callback: LogCallback) -> Iterator[None]:
    """Hand log records to a callback meanwhile."""
    handler = _Listener(callback)
    _logger.addHandler(handler)
    try:
        yield
    finally:
        _logger.removeHandler(handler)
