"""A batch engine as the server sees it: what its listener hears becomes events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..runtime.batch.batch_engine import BatchEngine
from ..runtime.batch.records import Piece, Record
from ..runtime.errors import SettingsError
from ..runtime.interface import Vocabulary
from ..runtime.scoring.embedder import Embedder
from .pushed_engine import EngineFigures, Event


class BatchSeat:
    """A :class:`~.pushed_engine.PushedEngine` that computes."""

    def __init__(
        self, engine: BatchEngine, open_embedder: Callable[[int], Embedder] | None = None
    ) -> None:
        """Take over an engine, which is closed with this.

        Args:
            engine: nobody else uses it.
            open_embedder: makes what embeds texts on the engine's weights, in so many bytes, of
                which the weights are a part; it is called once that is asked for.
        """
        self._engine, self._open_embedder = engine, open_embedder
        self._embedder: Embedder | None = None
        self._embedder_bytes = 0
        self._events: list[Event] = []
        self.n_ctx, self.n_seq = engine.n_ctx, engine.n_seq
        self.n_vocab = engine.vocab.n_tokens
        self.vocab: Vocabulary = engine.vocab
        self._figures = self._read_figures()

    def prompt_tokens(self, record: Record) -> tuple[int, ...]:
        """See :meth:`~.pushed_engine.PushedEngine.prompt_tokens`."""
        return self._engine.prompt_tokens(record)

    def submit(self, record: Record, prompt: tuple[int, ...], *, streams: bool = True) -> None:
        """See :meth:`~.pushed_engine.PushedEngine.submit`."""
        hear = self._events.append if streams else _FirstPiece(self._events).hear
        self._engine.submit(record, listener=hear, prompt=prompt)

    def cancel(self, identity: str | int) -> None:
        """See :meth:`~.pushed_engine.PushedEngine.cancel`."""
        self._engine.cancel(identity)

    def step(self, begins: Callable[[], None]) -> bool:
        """See :meth:`~.pushed_engine.PushedEngine.step`."""
        is_busy = self._engine.step(begins)
        self._figures = self._read_figures()
        return is_busy

    def take(self) -> list[Event]:
        """See :meth:`~.pushed_engine.PushedEngine.take`."""
        events = [*self._events, *self._engine.take()]
        self._events.clear()
        return events

    def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :meth:`~.pushed_engine.PushedEngine.embed`."""
        if self._embedder is None:
            if self._open_embedder is None:
                raise SettingsError("this engine makes no vectors")
            plan = self._engine.plan
            # weights and program are there already
            shared = plan.weights.n_bytes + plan.program
            self._embedder = self._open_embedder(plan.limit - self._engine.planned_bytes + shared)
            self._embedder_bytes = self._embedder.planned_bytes - shared
            self._figures = self._read_figures()
        return self._embedder.embed(tokens)

    def figures(self) -> EngineFigures:
        """See :meth:`~.pushed_engine.PushedEngine.figures`."""
        return self._figures

    def _read_figures(self) -> EngineFigures:
        engine, now = self._engine, self._engine.statistics
        counts = now.counts
        drafted, accepted = engine.guesses.counts if engine.guesses is not None else (0, 0)
        return EngineFigures(
            now.prompt_tokens, now.completion_tokens, counts.shared, counts.steps,
            counts.prefilled + counts.decoded + counts.fillers, counts.fillers,
            drafted, accepted, engine.planned_bytes + self._embedder_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Close what embeds, then the engine."""
        if self._embedder is not None:
            self._embedder.close()
        self._engine.close()


class _FirstPiece:
    """Hears the first piece of a record alone."""

    def __init__(self, events: list[Event]) -> None:
        self._events: list[Event] | None = events

    def hear(self, piece: Piece) -> None:
        """A :data:`~infer_os.runtime.batch.sequence.Listener`."""
        if self._events is not None:
            self._events.append(piece)
            self._events = None
