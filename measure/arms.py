"""One side of a comparison of techniques: an engine, and how it computes and draws.

Each arm has a process of its own, so that peak memory is measured per arm, and waits there while
another one works. Goes in: prompts. Come out: :class:`ArmResult` records.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from infer_os.native.residency import peak_rss_bytes
from infer_os.runtime.errors import ArmDied
from infer_os.runtime.generate import PlainSource, TokenSource, token_source
from infer_os.runtime.interface import Engine
from infer_os.runtime.open import open_engine
from infer_os.runtime.sampler import Sampler
from infer_os.runtime.settings import EngineSettings, SamplingSettings
from infer_os.runtime.speculative.figures import SpeculationReport
from infer_os.runtime.speculative.rounds import measure_steps

from .copying import RowSampler
from .speed import Progress, bench_tokens, token_bytes

#: Rows of logits that llama.cpp reserves by default: one per token of a batch.
ALL_ROWS = 512
#: A prompt comes in pieces, as a conversation does, so that a cache in stages goes through them.
_PIECE = 128
_SAMPLING = SamplingSettings()
_DRAWN_AT_ONCE = 7


@dataclass(frozen=True, slots=True)
class RowSettings(EngineSettings):
    """Engine settings that always reserve ``rows`` rows of logits."""

    rows: int = ALL_ROWS

    @property
    def n_outputs(self) -> int:
        """Rows of logits of a batch."""
        return self.rows


@dataclass(frozen=True, slots=True)
class Arm:
    """A file and how it is run.

    ``copying`` copies rows to Python and draws there; ``all_rows`` computes and reserves logits for
    every token of a prompt. With a draft, tokens are drawn by speculative decoding.
    """

    name: str
    path: Path
    settings: EngineSettings
    copying: bool = False
    all_rows: bool = False


@dataclass(frozen=True, slots=True)
class ArmTask:
    """The first ``n_prompt`` tokens of a text, then ``n_decode`` drawn ones."""

    text: str
    n_prompt: int
    n_decode: int


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one round took. ``draw_s`` is the part of ``decode_s`` spent drawing, if known.

    ``token_bytes`` is what decoding a token read at the end; ``steps`` has the seconds per batch,
    by size. ``acceptance`` is the probability that a guess of the draft model is right if those
    before it are, ``guess_s`` the seconds per guess. Memory is in bytes; ``peak`` is the most
    that the process ever held.
    """

    n_tokens: int
    prefill_s: float
    decode_s: float
    draw_s: float
    token_bytes: int
    kv_read: int
    peak: int
    weights: int
    kv: int
    compute: int
    logits: int
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    acceptance: float = 0.0
    guess_s: float = 0.0
    steps: tuple[tuple[int, float], ...] = ()

    @property
    def token_s(self) -> float:
        """Seconds per token."""
        return self.decode_s / self.n_tokens

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens per second."""
        return self.n_tokens / self.decode_s


def engine_settings(arm: Arm) -> EngineSettings:
    """How the engine of an arm is loaded."""
    given = arm.settings
    if not arm.all_rows:
        return given
    rows = max(ALL_ROWS, given.n_outputs)
    names = EngineSettings.__dataclass_fields__
    return RowSettings(**{name: getattr(given, name) for name in names}, rows=rows)


def run_arm(engine: Engine, arm: Arm, task: ArmTask) -> ArmResult:
    """One round: a prompt from an empty cache, then tokens, whether or not the text ends."""
    prompt = bench_tokens(engine, task.text, task.n_prompt)
    engine.trim(0)
    started = time.perf_counter()
    held = 0
    while held < len(prompt) - 1:
        held = min(held + _PIECE, len(prompt) - 1)
        if arm.all_rows:
            engine.extend(prompt[len(engine.tokens) : held])
        else:
            engine.feed(prompt[:held])
    drawer: Sampler | None = None
    if engine.speculation is None:
        drawer = RowSampler(_SAMPLING) if arm.copying else engine.new_sampler(_SAMPLING)
        source: TokenSource = PlainSource(engine, drawer)
    else:
        source = token_source(engine, _SAMPLING)
    with closing(source):
        source.start(prompt)
        prefill_s = time.perf_counter() - started
        if drawer is not None:
            n, decode_s, draw_s = _draw_plainly(engine, drawer, task.n_decode)
        else:
            n, decode_s, draw_s = _draw_guessing(source, task.n_decode)
    steps: dict[int, float] = {}
    if engine.speculation is None and not arm.copying and _rows(engine, arm) >= _DRAWN_AT_ONCE:
        steps = measure_steps(engine, _DRAWN_AT_ONCE)
    return _result(engine, (n, prefill_s, decode_s, draw_s), steps)


def _rows(engine: Engine, arm: Arm) -> int:
    return min(engine_settings(arm).n_outputs, engine.room)


def _draw_plainly(engine: Engine, sampler: Sampler, n: int) -> tuple[int, float, float]:
    clock = time.perf_counter
    draw_s, started = 0.0, clock()
    for _ in range(n):
        before = clock()
        token = engine.sample(sampler)
        draw_s += clock() - before
        engine.step(token)
    return n, clock() - started, draw_s


def _draw_guessing(source: TokenSource, n: int) -> tuple[int, float, float]:
    drawn, count = [source.first()], 0
    started = time.perf_counter()
    while count < n:
        drawn = source.advance(drawn[-1], n - count)
        count += len(drawn)
    return count, time.perf_counter() - started, 0.0


def _result(
    engine: Engine, measured: tuple[int, float, float, float], steps: dict[int, float]
) -> ArmResult:
    use, n_held = engine.memory(), len(engine.tokens)
    read = token_bytes(engine, n_held)
    guesses: dict[str, Any] = {}
    if engine.speculation is not None:
        report = engine.speculation.report()
        guesses = guess_figures(report)
        steps = report.step_s
    return ArmResult(
        *measured, token_bytes=read, kv_read=read - token_bytes(engine, 0), peak=peak_rss_bytes(),
        weights=use.weights, kv=use.kv, compute=use.compute, logits=use.logits,
        steps=tuple(steps.items()), **guesses,
    )  # fmt: skip


def guess_figures(report: SpeculationReport) -> dict[str, Any]:
    """The result's fields about guesses: counts of all drafters, rates of the draft model."""
    found: dict[str, Any] = {
        "drafted": report.drafted, "accepted": report.accepted,
        "rounds": sum(one.rounds for one in report.drafters),
    }  # fmt: skip
    for model in (one for one in report.drafters if one.name == "model"):
        # without verified guesses, its rates are mostly the initial assumptions
        found["acceptance"] = model.acceptance if model.drafted else 0.0
        found["guess_s"] = model.guess_s
    return found


class ArmProcess:
    """An arm in a process of its own. A context manager."""

    def __init__(self, arm: Arm) -> None:
        """Start it and load its model.

        Raises:
            What loading raised there.
        """
        self.arm = arm
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, arm), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.load_s = float(self._answer())
        except BaseException:
            self.close()
            raise

    def run(self, task: ArmTask) -> ArmResult:
        """One round."""
        self._pipe.send(task)
        result = self._answer()
        if not isinstance(result, ArmResult):
            raise TypeError(f"{self.arm.name}: not a result: {result!r}")
        return result

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise ArmDied(
                f"{self.arm.name}: its process ended with {self._process.exitcode}; not enough "
                "memory?"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> ArmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, arm: Arm) -> None:
    """The process: load, then answer tasks until the other end closes."""
    try:
        started = time.perf_counter()
        with open_engine(arm.path, engine_settings(arm)) as engine:
            pipe.send(time.perf_counter() - started)
            while True:
                pipe.send(run_arm(engine, arm, pipe.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(error)


def run_in_turns(
    arms: Sequence[Arm], tasks: Sequence[ArmTask], progress: Progress | None = None
) -> dict[str, list[ArmResult]]:
    """Run every task on every arm, in rotating order; the first task warms up and is dropped."""
    results: dict[str, list[ArmResult]] = {arm.name: [] for arm in arms}
    processes: list[ArmProcess] = []
    try:
        for arm in arms:
            processes.append(ArmProcess(arm))
        for number, task in enumerate(tasks):
            first = number % len(processes)
            for i, process in enumerate([*processes[first:], *processes[:first]]):
                results[process.arm.name].append(process.run(task))
                if progress:
                    progress(number * len(arms) + i + 1, len(tasks) * len(arms))
    finally:
        for process in processes:
            process.close()
    return {name: found[1:] for name, found in results.items()}
