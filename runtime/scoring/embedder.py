"""Embeddings: texts in, a vector for each out, of what the model computes before its head.

A vector is the last layer's state after the final norm, of the text's last token or the mean over
all of its tokens, with length 1. Texts are computed one after the other, in steps of as many tokens
as the context has rows of output.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infer_os.native.batch_context import Rows
from infer_os.native.errors import NotFinite
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.owner import Owner

from ..batch.batch_engine import BatchEngine
from ..batch.feeding import Pulled, Source
from ..batch.journal import LineForm
from ..batch.record_values import BadValue, kind_of
from ..batch.records import BadRecord, Place, ValueParser
from ..batch.settings import BatchSettings
from ..errors import PromptError, SettingsError
from ..settings import EngineSettings, Extra
from .score_records import ScoreRecord

#: What is embedded: a text, or an object as a line of a file has it.
EmbedInput: TypeAlias = str | Mapping[str, Any]

#: How a text's vector is made of its tokens'.
POOLINGS = ("mean", "last")

#: What the lines of the output hold.
EMBEDDINGS = LineForm(
    "embed", ("id", "embedding", "n_tokens", "error"), ("line",),
    {"embedding": "list<float>", "n_tokens": "int64", "error": "string", "line": "int64"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A text's vector, (n_embd,), of length 1, or what went wrong with it."""

    id: str | int | None
    line: int
    embedding: NDArray[np.float32] | None = None
    n_tokens: int = 0
    error: str | None = None

    @property
    def index(self) -> int | None:
        """None: a record has one result."""
        return None

    def as_json(self) -> dict[str, Any]:
        """A line of the output."""
        numbers = None if self.embedding is None else self.embedding.tolist()
        line: dict[str, Any] = {
            "id": self.id, "embedding": numbers, "n_tokens": self.n_tokens, "error": self.error,
        }  # fmt: skip
        return line | ({"line": self.line} if self.error is not None else {})


class EmbedParser(ValueParser[ScoreRecord]):
    """Makes records of texts."""

    def _record(self, place: Place, value: Mapping[str, Any]) -> ScoreRecord:
        given = self._given(value, ("id", "text"))
        if not isinstance(given.get("text"), str):
            raise BadValue(f'"text" is a text, not {kind_of(given.get("text"))}')
        return ScoreRecord(place.id, place.line, given["text"], None, place.unit)


def texts_to_embed(texts: Iterable[EmbedInput]) -> Iterator[ScoreRecord | BadRecord]:
    """Records of texts, and of values as of a file."""
    parser = EmbedParser()
    for number, text in enumerate(texts, 1):
        yield parser.parse(number, {"text": text} if isinstance(text, str) else text, "record")


def check_pooling(pooling: str) -> None:
    """See that there is such a way to make a vector.

    Raises:
        SettingsError: there is none.
    """
    if pooling not in POOLINGS:
        raise SettingsError(f"{pooling}: expected {' or '.join(POOLINGS)}", "pooling")


@dataclass(slots=True)
class EmbedStatistics:
    """What a run has done so far; ``completion_tokens`` are those of texts."""

    records: int = 0
    failed: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class Embedder(Owner):
    """A model that makes vectors of texts. A context manager; one thread makes all calls."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        pooling: str = "mean",
        *,
        warmed: Callable[[int, int], None] | None = None,
        model: LlamaModel | None = None,
    ) -> None:
        """Plan, check, load, allocate.

        Args:
            path: a GGUF file.
            settings: how it is loaded; nothing is guessed.
            pooling: one of :data:`POOLINGS`.
            warmed: called with bytes done and in all while the file is prefetched.
            model: the file's weights, if already loaded as the settings say; whoever loaded them
                closes them, after this.

        Raises:
            As :class:`~..batch.batch_engine.BatchEngine`; SettingsError as well for a draft or an
            unknown pooling.
        """
        check_pooling(pooling)
        if settings.draft != "none":
            raise SettingsError("nothing is drawn, so there is nothing to guess", "draft")
        settings = replace(settings, extras=settings.extras | {Extra.EMBEDDING})
        self._pooling = pooling
        self._engine = BatchEngine(path, settings, BatchSettings(1), warmed=warmed, model=model)
        self._context = self._engine.context
        self._context.give_states()
        self._n_rows = self._engine.plan.sizes.n_outputs
        self.n_ctx, self.vocab = self._engine.n_ctx, self._engine.vocab
        self.statistics = EmbedStatistics()

    @property
    def planned_bytes(self) -> int:
        """Bytes that the plan foresees at most."""
        return self._engine.planned_bytes

    def take_notes(self) -> tuple[str, ...]:
        """The notes that were not taken before."""
        return self._engine.take_notes()

    def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """The vector of tokens, (n_embd,), of length 1.

        Raises:
            PromptError: there are none, or more than the context holds; or what the model computes
                of them has no length.
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
            NotFinite: it is NaN or infinite.
        """
        if not tokens:
            raise PromptError("the text is empty")
        if len(tokens) > self.n_ctx:
            raise PromptError(
                f"the text has {len(tokens)} tokens, but the context holds {self.n_ctx}; shorten "
                "it or raise --context"
            )
        context = self._context
        context.trim(0, 0)
        total: Any = 0.0
        for first in range(0, len(tokens), self._n_rows):
            part = np.array(tokens[first : first + self._n_rows], np.int32)
            positions = np.arange(first, first + len(part), dtype=np.int32)
            zeros, ones = np.zeros(len(part), np.int32), np.ones(len(part), np.int8)
            context.use_threads(self._engine.parts.threads.now())
            with interruptible():
                context.decode(Rows(part, positions, zeros, ones))
            states = context.states(len(part)).astype(np.float64)  # (n_part, n_embd)
            total = states[-1] if self._pooling == "last" else total + states.sum(axis=0)
        if not np.isfinite(total).all():
            raise NotFinite("vector")
        length = float(np.linalg.norm(total))
        if not 0 < length < math.inf:
            raise PromptError(f"the model computes a vector of length {length:g}")
        return np.asarray(total / length, np.float32)

    def run(
        self,
        records: Iterable[ScoreRecord | BadRecord] | Source[ScoreRecord | BadRecord],
        done: Set[tuple[str | int, int]] = frozenset(),
    ) -> Generator[EmbedResult, None, None]:
        """The vectors of records, one after the other.

        Args:
            records: any iterable, or a source that reads ahead.
            done: ids of records to leave out, each with 0.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
        """
        source = Pulled(records) if isinstance(records, Iterable) else records
        self.statistics = statistics = EmbedStatistics()
        while (record := source.take(wait=True)) is not None:
            if isinstance(record, ScoreRecord) and (record.id, 0) in done:
                continue
            result = self._answer(record)
            statistics.records += 1
            statistics.failed += result.error is not None
            statistics.completion_tokens += result.n_tokens
            statistics.seconds = time.perf_counter() - statistics.started
            yield result

    def _answer(self, record: ScoreRecord | BadRecord) -> EmbedResult:
        if isinstance(record, BadRecord):
            return EmbedResult(record.id, record.line, error=record.error)
        try:
            tokens = self.vocab.tokenize(record.text)
            return EmbedResult(record.id, record.line, self.embed(tokens), len(tokens))
        except (NotFinite, PromptError) as error:
            return EmbedResult(record.id, record.line, error=f"{record.place}: {error}")

    def close(self) -> None:
        """Free the context, then the model."""
        self._engine.close()
