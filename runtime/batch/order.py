"""Results in the order of the input, if requested."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from .journal import Line
from .records import BadRecord


class Sampled(Protocol):
    """A record, and how many results it gets."""

    @property
    def id(self) -> str | int:
        """What its results are known by."""
        ...

    @property
    def line(self) -> int:
        """Its number."""
        ...

    @property
    def n(self) -> int:
        """How many."""
        ...

    @property
    def n_bytes(self) -> int:
        """About what it holds."""
        ...


Asked = TypeVar("Asked", bound=Sampled)
Told = TypeVar("Told", bound=Line)


class InputOrder(Generic[Told]):
    """Remembers in which order records came, and holds results back until it is their turn.

    Records may be watched in another thread than the one that arranges results.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[int, int] = {}
        self._held: dict[int, list[Told]] = {}

    def watch(
        self, records: Iterable[Asked | BadRecord], done: frozenset[tuple[object, int]]
    ) -> Iterator[Asked | BadRecord]:
        """The same records; ``done`` samples will get no result."""
        for record in records:
            missing = 1
            if not isinstance(record, BadRecord):
                missing = sum((record.id, i) not in done for i in range(record.n))
            if missing:
                with self._lock:
                    self._expected[record.line] = missing
            yield record

    def arrange(self, results: Iterable[Told]) -> Iterator[Told]:
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

    def _complete(self) -> list[Told]:
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


def in_order(
    run: Callable[[Iterable[Asked | BadRecord]], Iterator[Told]],
    records: Iterable[Asked | BadRecord],
) -> Generator[Told, None, None]:
    """An engine's results of records, in the order of the records."""
    order = InputOrder[Told]()
    results = run(order.watch(records, frozenset()))
    try:
        yield from order.arrange(results)
    finally:
        if isinstance(results, Generator):
            results.close()
