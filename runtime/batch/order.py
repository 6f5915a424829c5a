"""Results in the order of the input, where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .records import BadRecord, Record, Result


class InputOrder:
    """Remembers in which order records came, and holds results back until it is their turn."""

    def __init__(self) -> None:
        self._expected: dict[int, int] = {}
        self._held: dict[int, list[Result]] = {}

    def watch(
        self, records: Iterable[Record | BadRecord], done: frozenset[tuple[object, int]]
    ) -> Iterator[Record | BadRecord]:
        """The same records; ``done`` samples will get no result."""
        for record in records:
            if isinstance(record, BadRecord):
                self._expected[record.line] = 1
            else:
                missing = sum((record.id, i) not in done for i in range(record.n))
                if missing:
                    self._expected[record.line] = missing
            yield record

    def arrange(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results, sorted by line and sample."""
        for result in results:
            self._held.setdefault(result.line, []).append(result)
            while self._expected:
                line = next(iter(self._expected))
                got = self._held.get(line, [])
                # an error stands for all samples of its record
                failed = any(r.error is not None for r in got)
                if not failed and len(got) < self._expected[line]:
                    break
                del self._expected[line]
                self._held.pop(line, None)
                yield from sorted(got, key=lambda r: r.index or 0)
