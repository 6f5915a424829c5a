"""Results in the order of the input, if requested."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from .records import BadRecord, Record, Result


class InputOrder:
    """Remembers in which order records came, and holds results back until it is their turn.

    Records may be watched in another thread than the one that arranges results.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[int, int] = {}
        self._held: dict[int, list[Result]] = {}

    def watch(
        self, records: Iterable[Record | BadRecord], done: frozenset[tuple[object, int]]
    ) -> Iterator[Record | BadRecord]:
        """The same records; ``done`` samples will get no result."""
        for record in records:
            missing = 1
            if not isinstance(record, BadRecord):
                missing = sum((record.id, i) not in done for i in range(record.n))
            if missing:
                with self._lock:
                    self._expected[record.line] = missing
            yield record

    def arrange(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results, sorted by line and sample.

        After an error, the record's samples that went on come as soon as they are finished.
        """
        for result in results:
            with self._lock:
                is_late = result.line not in self._expected
            if is_late:
                yield result
                continue
            self._held.setdefault(result.line, []).append(result)
            while got := self._complete():
                yield from sorted(got, key=lambda r: r.index or 0)

    def _complete(self) -> list[Result]:
        """All results of the record whose turn it is; none where some are missing."""
        with self._lock:
            if not self._expected:
                return []
            line = next(iter(self._expected))
            got = self._held.get(line, [])
            # an error stands for all samples of its record
            failed = any(r.error is not None for r in got)
            if not failed and len(got) < self._expected[line]:
                return []
            del self._expected[line]
        return self._held.pop(line)
