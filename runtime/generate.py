"""Generate in four thin layers: tokens, text, one string; the terminal is up to the caller."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from infer_os.native.errors import ContextFull, Interrupted
from infer_os.native.interrupt import interruptible

from .interface import Engine
from .sampler import Sampler
from .settings import SamplingSettings, StopSettings
from .speculative.rounds import SpeculativeSource
from .text import TextStream


class FinishReason(str, Enum):
    """Why a generation ended."""

    END = "end"  # the model's end of text
    STOP = "stop"  # a stop string
    LENGTH = "length"  # the token limit
    CONTEXT = "context"  # the context is full
    INTERRUPT = "interrupt"  # Ctrl-C


@dataclass(slots=True)
class Timings:
    """Seconds and tokens of one generation."""

    prompt_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second; those reused from the cache do not count."""
        return self.computed_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second after the first."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(slots=True)
class Generation:
    """A generation in progress: what it has drawn, what it cost, why it ended."""

    tokens: list[int] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings


class TokenSource(Protocol):
    """Where tokens come from. The engine then holds all tokens but the last one drawn."""

    def start(self, prompt: Sequence[int]) -> int:
        """Compute a prompt; returns the number of tokens computed."""
        ...

    def first(self) -> int:
        """The token after the prompt."""
        ...

    def advance(self, token: int, limit: int) -> list[int]:
        """Append a token; returns the next ones, from 1 to ``limit``."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class PlainSource:
    """One token at a time."""

    def __init__(self, engine: Engine, sampler: Sampler) -> None:
        self._engine, self._sampler = engine, sampler

    def start(self, prompt: Sequence[int]) -> int:
        """See :meth:`TokenSource.start`."""
        n_computed = self._engine.feed(prompt)
        self._sampler.remember(prompt)
        return n_computed

    def first(self) -> int:
        """See :meth:`TokenSource.first`."""
        return self._engine.sample(self._sampler)

    def advance(self, token: int, limit: int) -> list[int]:
        """See :meth:`TokenSource.advance`."""
        self._engine.step(token)
        return [self._engine.sample(self._sampler)]

    def close(self) -> None:
        """Free the sampler."""
        self._sampler.close()


def token_source(engine: Engine, sampling: SamplingSettings) -> TokenSource:
    """How an engine generates: with guesses, if it has drafters."""
    if engine.speculation is not None:
        return SpeculativeSource(engine, engine.speculation, sampling)
    return PlainSource(engine, engine.new_sampler(sampling))


def stream_tokens(
    engine: Engine, prompt: Sequence[int], source: TokenSource, max_tokens: int, state: Generation
) -> Iterator[int]:
    """Token loop: feed the prompt, then draw and append until something ends it.

    Yields every drawn token but the end of text. ``state`` is filled on the way and says, after the
    last token, why it ended (None if the caller stopped asking).
    """
    timings = state.timings
    started = time.perf_counter()
    timings.prompt_tokens = len(prompt)
    timings.computed_tokens = source.start(prompt)
    timings.prefill_s = time.perf_counter() - started
    is_end, advance, n_ctx = engine.vocab.is_end, source.advance, engine.n_ctx
    held = len(prompt)
    drawn = [source.first()]
    first = time.perf_counter()
    timings.first_token_s = first - started
    while True:
        timings.decode_s = time.perf_counter() - first
        for token in drawn:
            state.tokens.append(token)
            timings.completion_tokens = len(state.tokens)
            if is_end(token):
                state.finish_reason = FinishReason.END
                return
            yield token
            if len(state.tokens) >= max_tokens:
                state.finish_reason = FinishReason.LENGTH
                return
            if held >= n_ctx:
                state.finish_reason = FinishReason.CONTEXT
                return
            held += 1
        # after the appended token, the context has room for this many
        drawn = advance(token, min(max_tokens - len(state.tokens), n_ctx - held + 1))


def stream_text(
    engine: Engine,
    prompt: Sequence[int],
    sampling: SamplingSettings,
    stop: StopSettings,
    state: Generation,
) -> Generator[str, None, None]:
    """Text loop: whole characters, no part of a stop string, Ctrl-C as an ordinary end."""
    text = TextStream(stop.strings)
    source = token_source(engine, sampling)
    try:
        with interruptible():
            for token in stream_tokens(engine, prompt, source, stop.limit, state):
                if chunk := text.push(engine.vocab.piece(token)):
                    yield chunk
                if text.stopped:
                    state.finish_reason = FinishReason.STOP
                    return
    except (KeyboardInterrupt, Interrupted):
        state.finish_reason = FinishReason.INTERRUPT
    except ContextFull:
        state.finish_reason = FinishReason.CONTEXT
    finally:
        source.close()
    if chunk := text.finish():
        yield chunk


def complete(
    engine: Engine,
    prompt: Sequence[int],
    sampling: SamplingSettings,
    stop: StopSettings,
) -> Completion:
    """String: the whole text at once."""
    state = Generation()
    text = "".join(stream_text(engine, prompt, sampling, stop, state))
    return finished(state, text)


def finished(state: Generation, text: str) -> Completion:
    """The record of a generation that has ended."""
    reason = state.finish_reason or FinishReason.INTERRUPT
    return Completion(text, tuple(state.tokens), reason, state.timings)
