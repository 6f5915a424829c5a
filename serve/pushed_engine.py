"""What the server stands on: an engine that is pushed, step by step, by the thread that owns it.

Records are submitted at any time and share the steps; what has become of them is taken out between
two steps. :class:`PushedEngine` says it as a protocol, so that
:class:`~.scripted_engine.ScriptedEngine` can stand in for a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.batch.records import Piece, Record, Result
from ..runtime.interface import Vocabulary

#: What comes out of an engine. A sample's pieces come before its result.
Event = Piece | Result


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine has done so far, and what it holds."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    shared_tokens: int = 0
    steps: int = 0
    rows: int = 0
    filler_rows: int = 0
    drafted: int = 0
    accepted: int = 0
    planned_bytes: int = 0

    def __add__(self, other: EngineFigures) -> EngineFigures:
        """Of both together."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return EngineFigures(*(one + two for one, two in pairs))


class PushedEngine(Protocol):
    """An engine of ``n_seq`` sequences with ``n_ctx`` tokens each.

    It belongs to one thread. Only :meth:`prompt_tokens`, :meth:`figures` and what does not change
    (the numbers and the vocabulary) are for others too.
    """

    @property
    def n_ctx(self) -> int:
        """Tokens of a sequence, prompt and answer together."""
        ...

    @property
    def n_seq(self) -> int:
        """Sequences that are computed at once."""
        ...

    @property
    def n_vocab(self) -> int:
        """Tokens that there are."""
        ...

    @property
    def vocab(self) -> Vocabulary:
        """Its vocabulary, for any thread."""
        ...

    def prompt_tokens(self, record: Record) -> tuple[int, ...]:
        """A record's prompt as the model gets it. May take its time, as a chat template does.

        For any thread, one call at a time.

        Raises:
            PromptError: the prompt has far more tokens than the context holds.
            TemplateFailure: the model's chat template refuses the conversation.
        """
        ...

    def submit(self, record: Record, prompt: tuple[int, ...], *, streams: bool = True) -> None:
        """Put a record's samples in line; ``prompt`` is what :meth:`prompt_tokens` gave.

        Without ``streams`` only the first piece of them comes out, which tells that they began.
        What cannot be begun after all, as for a constraint, gives a result with an error.
        """
        ...

    def cancel(self, identity: str | int) -> None:
        """Forget a record: none of its samples is computed or comes out any more."""
        ...

    def step(self, begins: Callable[[], None]) -> bool:
        """Compute one step; False if there was nothing to compute.

        ``begins`` is called when it is about to be computed, which keeps no other thread from
        Python.
        """
        ...

    def take(self) -> list[Event]:
        """What came of the steps since the last call."""
        ...

    def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """The vector of tokens, (n_embd,), of length 1.

        Raises:
            MemoryShortage: there is none left for what computes it.
            NotFinite: it is NaN or infinite.
        """
        ...

    def figures(self) -> EngineFigures:
        """What it has done, for any thread."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
