"""Where a generation's tokens come from: one step at a time, or in rounds of guesses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from ..interface import Engine
from ..settings import SamplingSettings
from .costs import MEASURED
from .model_drafter import ModelDrafter
from .speculation import Speculation
from .verifier import SameDistribution, SameText, Verifier

#: Times that each batch size is measured at start.
_REPEATS = 3


class SpeculativeSource:
    """Rounds of guesses on an engine; see :class:`~..generate.TokenSource`."""

    def __init__(
        self,
        engine: Engine,
        speculation: Speculation,
        settings: SamplingSettings,
    ) -> None:
        """Choose the rule: the same text if it is determined, else the same distribution."""
        self._engine, self._speculation = engine, speculation
        # a constraint, mirostat and adaptive-p follow what is drawn: guesses do not change them
        determined = (
            settings.temperature == 0 or settings.seed is not None
            or bool(settings.constraint) or settings.adapts
        )  # fmt: skip
        self._verifier: Verifier = (
            SameText(engine, settings) if determined else SameDistribution(engine, settings)
        )
        speculation.use_rule(type(self._verifier).__name__)
        for runner in speculation.runners:
            if isinstance(runner.drafter, ModelDrafter):
                runner.drafter.sample_like(None if determined else settings)

    def start(self, prompt: Sequence[int]) -> int:
        """See :meth:`~..generate.TokenSource.start`."""
        n_computed = self._engine.feed(prompt)
        self._verifier.begin(prompt)
        self._speculation.begin(prompt)
        return n_computed

    def first(self) -> int:
        """See :meth:`~..generate.TokenSource.first`."""
        token = self._verifier.draw()
        self._speculation.push(token)
        return token

    def _measure(self) -> None:
        """Measure what batches cost, once there is a text to append them to."""
        if self._speculation.steps is None:
            seconds = measure_steps(self._engine, self._speculation.draft_max + 1)
            if len(seconds) > 1:
                self._speculation.set_costs(seconds)

    def advance(self, token: int, limit: int) -> list[int]:
        """See :meth:`~..generate.TokenSource.advance`."""
        engine, speculation = self._engine, self._speculation
        if speculation.idle > 0:
            speculation.idle -= 1
            engine.step(token)
            drawn_token = self._verifier.draw()
            speculation.push(drawn_token)
            return [drawn_token]
        most_rows = self._verifier.most_rows()
        if most_rows > 1:
            self._measure()
        proposal = speculation.propose(min(limit, engine.room, most_rows) - 1)
        started = time.perf_counter()
        if proposal is None:
            engine.step(token)
            drawn = [self._verifier.draw()]
            speculation.learn_step(time.perf_counter() - started)
        else:
            drawn = self._verifier.verify(token, proposal.guesses)
            seconds = time.perf_counter() - started
            guesses = [guess.token for guess in proposal.guesses]
            n_right = sum(mine == theirs for mine, theirs in zip(drawn, guesses, strict=False))
            speculation.learn_round(proposal, n_right, seconds)
        for drawn_token in drawn:
            speculation.push(drawn_token)
        return drawn

    def close(self) -> None:
        """Free the samplers."""
        self._verifier.close()


def measure_steps(
    engine: Engine, largest: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Seconds of a batch of each size up to ``largest``, after what the engine holds.

    The text is briefly extended and cut off again; the logits of its last token are then gone.
    Sizes alternate, so that a busy moment does not affect only one of them.
    """
    held = list(engine.tokens)
    room = min(engine.room, engine.n_ctx - len(held))
    sizes = [n for n in MEASURED if n <= min(largest, room)]
    times: dict[int, list[float]] = {n: [] for n in sizes}
    filler = [held[-1]] * max(sizes, default=0)
    for _ in range(_REPEATS):
        for n in sizes:
            started = clock()
            engine.extend(filler[:n])
            times[n].append(clock() - started)
            engine.trim(len(held))
    return {n: statistics.median(seconds) for n, seconds in times.items()}
