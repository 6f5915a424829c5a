"""Speed of one engine or several: first token, prefill and decode at several depths, memory.

Goes in: engines and a text. Come out: measurements. Several engines take turns, so that a busy
moment does not hit one of them alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

from infer_os.runtime.generate import token_source
from infer_os.runtime.interface import Engine
from infer_os.runtime.plan.memory_plan import kv_model
from infer_os.runtime.settings import SamplingSettings

from .energy import EnergyMeter, EnergyZone
from .rows import Label, Measurement
from .settings import BenchSettings

Progress = Callable[[int, int], None]
_GREEDY = SamplingSettings(temperature=0)
#: Tokens between two readings of the memory.
GROWTH_STEP = 64
_RATE = "tokens/s"


def bench_tokens(engine: Engine, text: str, n: int) -> list[int]:
    """``n`` tokens of a text, which is repeated as often as needed."""
    tokens = engine.vocab.tokenize(text, add_special=False, parse_special=False)
    return (tokens * (n // len(tokens) + 1))[:n]


def measure_depths(
    engines: Mapping[str, Engine],
    tokens: Sequence[int],
    depths: Sequence[int],
    settings: BenchSettings,
    zones: tuple[EnergyZone, ...] = (),
    progress: Progress | None = None,
) -> list[Measurement]:
    """First token, prefill and decode of each engine at each depth.

    Args:
        engines: keyed by the name that their rows get as ``kv``.
        tokens: a text, at least ``depths[-1] + settings.n_measured + 1`` of them.
        depths: numbers of tokens in the cache, in order.
        settings: repeats and sizes. A round before them warms up and is not counted.
        zones: where energy is read.
        progress: called with rounds done and in all.
    """
    names = list(engines)
    found: dict[str, list[Measurement]] = {name: [] for name in names}
    for repeat in range(settings.repeats + 1):
        # the order rotates, so that no engine always follows the same one
        order = names[repeat % len(names) :] + names[: repeat % len(names)]
        for name in order:
            run = _DepthRun(engines[name], name, tokens, settings, zones)
            measured = [run.first_token()]
            for depth in depths:
                measured += run.at_depth(depth)
            if repeat:
                found[name] += measured
        if progress:
            progress(repeat + 1, settings.repeats + 1)
    return [one for name in names for one in found[name]]


class _DepthRun:
    """One engine, from empty to the deepest depth."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        tokens: Sequence[int],
        settings: BenchSettings,
        zones: tuple[EnergyZone, ...],
    ) -> None:
        self._engine, self._name, self._tokens = engine, name, tokens
        self._settings, self._zones = settings, zones

    def _found(self, metric: str, unit: str, value: float, **labels: Label) -> Measurement:
        return Measurement(metric, unit, value, (("kv", self._name), *labels.items()))

    def first_token(self) -> Measurement:
        """Seconds from an empty cache to the first drawn token."""
        n = self._settings.n_prompt
        self._engine.trim(0)
        with closing(token_source(self._engine, _GREEDY)) as source:
            started = time.perf_counter()
            source.start(self._tokens[:n])
            source.first()
            seconds = time.perf_counter() - started
        self._engine.trim(0)
        return self._found("first_token", "s", seconds, prompt_tokens=n)

    def at_depth(self, depth: int) -> list[Measurement]:
        """Decode, then prefill, after ``depth`` tokens."""
        engine, settings = self._engine, self._settings
        held = max(1, depth)  # decoding needs at least one token to start from
        engine.feed(self._tokens[:held])
        meter = EnergyMeter(self._zones) if self._zones else None
        n_drawn, seconds = self._decode(held)
        joules = meter.lap() if meter else 0.0
        # decoded tokens of the text are kept, those drawn with a draft are not
        start = held + settings.n_decode
        engine.feed(self._tokens[:start])
        started = time.perf_counter()
        n_computed = engine.feed(self._tokens[: start + settings.n_prompt])
        prefill_s = time.perf_counter() - started
        found = [
            self._found("decode", _RATE, n_drawn / seconds, depth=depth),
            self._found("prefill", _RATE, n_computed / prefill_s, depth=depth),
        ]
        if meter:
            found.append(self._found("energy", "J/token", joules / n_drawn, depth=depth))
        return found

    def _decode(self, held: int) -> tuple[int, float]:
        """Tokens and seconds. Without guesses, the text itself is decoded token by token."""
        engine, n = self._engine, self._settings.n_decode
        with closing(token_source(engine, _GREEDY)) as source:
            if engine.speculation is not None:
                source.start(self._tokens[:held])
                drawn = [source.first()]
                count, started = 0, time.perf_counter()
                while count < n:
                    drawn = source.advance(drawn[-1], n - count)
                    count += len(drawn)
                return count, time.perf_counter() - started
            with closing(engine.new_sampler(_GREEDY)) as sampler:
                started = time.perf_counter()
                for token in self._tokens[held : held + n]:
                    engine.step(token)
                    engine.sample(sampler)
                return n, time.perf_counter() - started


def measure_growth(engine: Engine, name: str, tokens: Sequence[int]) -> list[Measurement]:
    """Bytes of the cache and of this process's own memory as a text grows from empty."""
    found = []
    engine.trim(0)
    for n in range(GROWTH_STEP, len(tokens) + 1, GROWTH_STEP):
        engine.feed(tokens[:n])
        use, stage = engine.memory(), engine.kv.types
        labels: tuple[tuple[str, Label], ...] = (("kv", name), ("tokens", n), ("stage", stage))
        found.append(Measurement("kv_memory", "bytes", use.kv, labels))
        found.append(Measurement("anonymous_memory", "bytes", use.anonymous, labels))
    return found


def measure_memory(engine: Engine, peak: int) -> list[Measurement]:
    """The peak of this process, and its parts now."""
    use = engine.memory()
    parts = {
        "peak_rss": peak, "rss": use.rss, "anonymous": use.anonymous, "file_pages": use.model_pages,
        "weights": use.weights, "kv": use.kv, "compute": use.compute, "logits": use.logits,
        "planned": use.planned,
    }  # fmt: skip
    return [
        Measurement("memory", "bytes", n_bytes, (("part", name),))
        for name, n_bytes in parts.items()
    ]


def token_bytes(engine: Engine, depth: int) -> int:
    """Bytes that decoding a token reads at a depth: matrices, and K and V; 0 if unknown."""
    plan = engine.info.plan
    if plan is None:
        return 0
    model = kv_model(plan.shape)
    stage = plan.schedule.stages[plan.schedule.index_for(depth + 1)]
    return plan.weights.read_bytes + stage.form(model).token_bytes(model.geometry) * depth


def bandwidth_shares(
    engines: Mapping[str, Engine], decoded: Sequence[Measurement], bandwidth: float
) -> list[Measurement]:
    """The share of the machine's read bandwidth that each decode measurement reaches."""
    shares = []
    for one in decoded:
        if one.metric != "decode":
            continue
        labels = dict(one.labels)
        engine = engines[str(labels["kv"])]
        n_bytes = token_bytes(engine, int(labels["depth"]))
        # a right guess needs no reading of its own
        if n_bytes and engine.speculation is None:
            share = one.value * n_bytes / bandwidth
            shares.append(Measurement("bandwidth_share", "of 1", share, one.labels))
    return shares
