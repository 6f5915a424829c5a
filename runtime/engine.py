"""The engine: a model with one context, and the tokens that its cache holds.

Everything above it (token loop, text, session) speaks to the :class:`Engine` protocol, so that
:class:`~.fake.FakeEngine` can stand in for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from infer_os.native.context import Context, ContextParams
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.model import Model

from .errors import PromptError, SettingsError
from .memory import MemoryNeed, check_fits, memory_limit, memory_need
from .sampler import LlamaSampler, Sampler
from .settings import EngineSettings, SamplingSettings

_DEFAULT_CONTEXT = 4096

#: Graphs whose positions are a table: past its end there is nothing to read.
_LEARNED_POSITIONS = ("gpt2",)
#: Graphs without any notion of a trained length (ALiBi).
_NO_TRAINED_LENGTH = ("bloom",)


class Vocabulary(Protocol):
    """Text to tokens and back."""

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        ...


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was loaded. ``notes`` are warnings for the user."""

    path: Path
    graph: str
    source: str
    n_ctx: int
    n_threads: int
    need: MemoryNeed
    chat_template: str | None
    notes: tuple[str, ...]


class Engine(Protocol):
    """A model and the tokens in its cache."""

    info: EngineInfo

    @property
    def vocab(self) -> Vocabulary:
        """The model's vocabulary."""
        ...

    @property
    def n_ctx(self) -> int:
        """Tokens that the cache can hold."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens that the cache holds."""
        ...

    def new_sampler(self, settings: SamplingSettings) -> Sampler:
        """A sampler for this model; the caller closes it."""
        ...

    def feed(self, tokens: Sequence[int]) -> int:
        """Make the cache hold exactly ``tokens`` and compute the last one's logits.

        What it shares with the tokens held so far is kept. Returns the number computed.

        Raises:
            PromptError: no tokens, or more than the context holds.
        """
        ...

    def step(self, token: int) -> None:
        """Append one token and compute its logits."""
        ...

    def sample(self, sampler: Sampler) -> int:
        """Draw a token from the last logits."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LlamaEngine:
    """The engine that runs llama.cpp. A context manager."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Check, load and allocate.

        Raises:
            GgufError: the file cannot be used.
            SettingsError: the context is not possible for this model.
            MemoryShortage: it does not fit.
            ModelLoadError: llama.cpp refuses it.
        """
        header = read_gguf_header(path)
        n_ctx, notes = choose_context(header, settings.context)
        check_fits(header, n_ctx, memory_limit())
        with ExitStack() as stack:
            model = stack.enter_context(Model(path, load=settings.load, progress=progress))
            context = stack.enter_context(
                Context(model, ContextParams(n_ctx=n_ctx, n_threads=settings.n_threads))
            )
            self._owned = stack.pop_all()
        self._model, self._context = model, context
        self._tokens: list[int] = []
        self._dirty = False
        self.vocab = model.vocab
        # llama.cpp rounds the size of a cache up: what was asked for is the promise
        self.n_ctx = n_ctx
        self.info = EngineInfo(
            path=path,
            graph=header.architecture,
            source=str(header.metadata.get("inferos.source.architecture", header.architecture)),
            n_ctx=n_ctx,
            n_threads=settings.n_threads,
            need=memory_need(header, n_ctx),
            chat_template=model.chat_template,
            notes=notes,
        )

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens that the cache holds."""
        return self._tokens

    @property
    def context(self) -> Context:
        """The context, for those who read logits."""
        return self._context

    def new_sampler(self, settings: SamplingSettings) -> LlamaSampler:
        """A sampler for this model; the caller closes it."""
        return LlamaSampler(settings, self.vocab.n_tokens)

    def feed(self, tokens: Sequence[int]) -> int:
        """See :meth:`Engine.feed`."""
        if not tokens:
            raise PromptError("the prompt is empty: it has no tokens to continue from")
        if len(tokens) > self.n_ctx:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens, but the context holds {self.n_ctx}; "
                "shorten it or raise --context"
            )
        # the last token is computed again even if it is held: its logits are gone
        shared = min(shared_prefix(self._tokens, tokens), len(tokens) - 1)
        self._cut(shared)
        n_batch = self._context.n_batch
        for first in range(shared, len(tokens), n_batch):
            part = tokens[first : first + n_batch]
            last = first + len(part) == len(tokens)
            self._dirty = True
            self._context.decode(part, first, outputs=int(last))
            self._tokens.extend(part)
            self._dirty = False
        return len(tokens) - shared

    def step(self, token: int) -> None:
        """See :meth:`Engine.step`."""
        if self._dirty:
            self._cut(len(self._tokens))
        self._dirty = True
        self._context.decode_one(token, len(self._tokens))
        self._tokens.append(token)
        self._dirty = False

    def sample(self, sampler: Sampler) -> int:
        """See :meth:`Engine.sample`."""
        return sampler.draw(self._context)

    def _cut(self, n_tokens: int) -> None:
        # after an interrupted decode the cache may hold more than the list says
        if self._dirty or n_tokens < len(self._tokens):
            self._context.trim(n_tokens)
            del self._tokens[n_tokens:]
            self._dirty = False

    def close(self) -> None:
        """Free the context, then the model."""
        self._owned.close()

    def __enter__(self) -> LlamaEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def shared_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Number of leading tokens that both have."""
    count = 0
    for mine, theirs in zip(held, wanted, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def choose_context(header: GgufHeader, asked: int) -> tuple[int, tuple[str, ...]]:
    """The context to allocate, and a warning if it is longer than what the model learned.

    Raises:
        SettingsError: the model has no positions that far.
    """
    graph = header.architecture
    trained = int(header.metadata.get(f"{graph}.context_length", 2048))
    if not asked:
        return min(trained, _DEFAULT_CONTEXT), ()
    if asked <= trained or graph in _NO_TRAINED_LENGTH:
        return asked, ()
    if graph in _LEARNED_POSITIONS:
        raise SettingsError(
            f"--context {asked}: {header.path.name} has {trained} learned positions and none beyond"
        )
    return asked, (
        f"--context {asked}: the model was trained for {trained} tokens; expect nonsense beyond",
    )
