"""The scorer: a model and a context of many sequences, records in, scores out.

It is pushed like a batch engine: records are submitted at any time, and a step computes what there
is. :meth:`Scorer.run` does both for an iterable.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Set
from dataclasses import replace
from pathlib import Path

from infer_os.native.graph_check import read_model_header
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.owner import Owner
from infer_os.sizes import size_text

from ..batch.batch_engine import BatchEngine
from ..batch.feeding import Pulled, Source
from ..batch.parallel import most_that_fit
from ..batch.records import BadRecord
from ..batch.settings import BatchSettings
from ..errors import SettingsError
from ..plan.memory_plan import MemoryShortage
from ..settings import EngineSettings, Extra
from .score_records import ScoreRecord, ScoreResult
from .scoring_run import Parts, ScoringRun, ScoringStatistics
from .settings import ScoringSettings

#: Sequences that fill a step with rows of prompts; more would only hold more.
USUAL_PARALLEL = 8
#: Contexts are computed as far as they go before anything is scored, so that many rows are.
_NO_CHUNK = 1 << 30


class Scorer(Owner):
    """A model that scores texts. A context manager; one thread makes all calls."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        scoring: ScoringSettings | None = None,
        *,
        warmed: Callable[[int, int], None] | None = None,
        model: LlamaModel | None = None,
    ) -> None:
        """Plan, check, load, allocate.

        Args:
            path: a GGUF file.
            settings: how it is loaded; nothing is guessed.
            scoring: how records are scored.
            warmed: called with bytes done and in all while the file is prefetched.
            model: the file's weights if they are loaded already, as the settings say; whoever
                loaded them closes them, after this.

        Raises:
            As :class:`~..batch.batch_engine.BatchEngine`; SettingsError as well for a draft.
        """
        if settings.draft != "none":
            raise SettingsError("scoring draws no tokens, so there is nothing to guess", "draft")
        scoring = scoring or ScoringSettings()
        settings = replace(settings, extras=settings.extras | {Extra.SCORING})
        parallel = scoring.parallel or most_that_fit(
            read_model_header(path), settings, candidates=(USUAL_PARALLEL,)
        )[0]  # fmt: skip
        engine = BatchEngine(path, settings, BatchSettings(parallel), warmed=warmed, model=model)
        self._engine = engine
        self.path, self.plan, self.vocab = path, engine.plan, engine.vocab
        self.n_ctx, self.n_seq = engine.n_ctx, engine.n_seq
        self._planned = self._most_reserved = 0
        limits = replace(engine.parts.limits, chunk=_NO_CHUNK, n_outputs=self.plan.sizes.n_outputs)
        #: What records are scored with.
        self.parts = Parts(
            engine.context,
            engine.vocab,
            limits,
            engine.parts.threads,
            scoring.totals,
            self._reserve,
        )
        self._run = ScoringRun(self.parts)

    def _reserve(self, n_bytes: int) -> None:
        if self._engine.planned_bytes + n_bytes > self.plan.limit:
            raise MemoryShortage(
                f"a text of its length takes {size_text(n_bytes)} more, and "
                f"{size_text(self.plan.limit)} may be used; raise --memory or lower --parallel"
            )
        self._most_reserved = max(self._most_reserved, n_bytes)

    @property
    def planned_bytes(self) -> int:
        """Bytes that the plan foresees at most, with those of long texts that came."""
        return self._engine.planned_bytes + self._most_reserved

    @property
    def model(self) -> LlamaModel:
        """The loaded model."""
        return self._engine.model

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        return self._engine.notes

    def take_notes(self) -> tuple[str, ...]:
        """The notes that were not taken before."""
        return self._engine.take_notes()

    # ---- pushed

    def submit(self, record: ScoreRecord | BadRecord) -> None:
        """Put a record in line; one that cannot be scored gives a result with an error."""
        self._run.submit(record)

    @property
    def n_wanted(self) -> int:
        """How many records it can use; further ones wait, and are held, without advantage."""
        return self._run.n_wanted

    @property
    def is_busy(self) -> bool:
        """Whether a record waits or runs."""
        return self._run.is_busy

    def step(self) -> bool:
        """Give waiting records their slots and compute one decode; whether there is more to do.

        Ctrl-C stops it at once. After an error everything that waited or ran is lost.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
        """
        try:
            with interruptible():
                return self._run.step()
        except BaseException:
            self.restart()
            raise

    def take(self) -> list[ScoreResult]:
        """The results that were finished since the last call, each once."""
        return self._run.take()

    def restart(self) -> None:
        """Cancel everything, forget what slots hold of prompts, and begin new statistics."""
        self._run = ScoringRun(self.parts)

    @property
    def statistics(self) -> ScoringStatistics:
        """Of all that was submitted since the start, or the latest :meth:`restart`."""
        return self._run.statistics

    # ---- pulled

    def run(
        self,
        records: Iterable[ScoreRecord | BadRecord] | Source[ScoreRecord | BadRecord],
        done: Set[tuple[str | int, int]] = frozenset(),
    ) -> Generator[ScoreResult, None, None]:
        """Score records; each one's result comes as soon as it is finished.

        Args:
            records: any iterable, which is read as far ahead as :attr:`n_wanted` says, and in this
                thread: one that waits holds up what runs. A :class:`~..batch.feeding.ReadAhead`
                does not.
            done: ids of records to leave out, each with 0.

        Raises:
            As :meth:`step`.
        """
        source = Pulled(records) if isinstance(records, Iterable) else records
        self.restart()
        while True:
            while self.n_wanted:
                record = source.take(wait=not self.is_busy)
                if record is None:
                    break
                if isinstance(record, BadRecord) or (record.id, 0) not in done:
                    self.submit(record)
                    # what cannot be scored is reported before the next one is waited for
                    yield from self.take()
            # results are handed out between steps, where signals are Python's own
            going = self.step()
            yield from self.take()
            if source.is_over and not going:
                return

    def close(self) -> None:
        """Free the context, then the model."""
        self._engine.close()
