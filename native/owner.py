"""The base of every owner of a resource: a context manager that closes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_Owner = TypeVar("_Owner", bound="Owner")


class Owner(ABC):
    """Closes what it owns at the end of its ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Release what it owns; a second call does nothing."""

    def __enter__(self: _Owner) -> _Owner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
