"""What a model is to everything above it: a vocabulary, an engine, and what was loaded.

The token loop, text and sessions use :class:`Engine`, so that :class:`~.fake.FakeEngine` can
stand in for a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from infer_os.native.backend import SWITCHED_OFF, KernelStatus
from infer_os.native.kv_state import KvFormat

from .errors import SettingsError
from .kv.staged import KvStatus, SavedRows
from .memory import MemoryUse
from .plan.memory_plan import Plan
from .sampler import Sampler, TokenFilter
from .settings import NO_ADAPTER, SamplingSettings

if TYPE_CHECKING:
    from .speculative.speculation import Speculation


class Vocabulary(Protocol):
    """Text to tokens and back."""

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text."""
        ...

    def fewest_tokens(self, text: str | bytes, most: int) -> int:
        """A lower bound on a text's tokens, if it is above ``most``; else 0."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        ...

    def special_texts(self) -> Sequence[str]:
        """The spelling of every special token."""
        ...

    def special_text(self, name: str) -> str:
        """The spelling of the "bos", "eos", "unk", "pad", "sep", "cls" or "mask" token, or ""."""
        ...


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was loaded, and by which plan. ``notes`` are warnings for the user.

    ``style`` names the prompt style of the model, ``adapters`` those that are loaded with it.
    """

    path: Path
    graph: str
    source: str
    n_ctx: int
    n_threads: int
    plan: Plan | None
    chat_template: str | None
    notes: tuple[str, ...]
    style: str = "dialogue"
    kernels: KernelStatus = SWITCHED_OFF
    adapters: tuple[str, ...] = ()


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

    @property
    def adapter(self) -> str:
        """The name of the adapter that texts are written with; "" for none."""
        ...

    @property
    def adapter_identity(self) -> str:
        """What says which rows of a cache are of the same adapter; "" for none."""
        ...

    def use_adapter(self, name: str) -> None:
        """Write texts with another adapter, or with none (""); the cache is emptied.

        Raises:
            SettingsError: no adapter of that name is loaded.
        """
        ...

    def new_sampler(self, settings: SamplingSettings) -> Sampler:
        """A sampler for this model; the caller closes it."""
        ...

    def feed(self, tokens: Sequence[int]) -> int:
        """Make the cache hold exactly ``tokens`` and compute the last one's logits.

        The prefix shared with the tokens held so far is kept. Returns the number computed.

        Raises:
            PromptError: no tokens, or more than the context holds.
        """
        ...

    @property
    def room(self) -> int:
        """Tokens that can be appended before the cache has to change."""
        ...

    def rows_alike(self) -> int:
        """Most tokens of a batch whose logits are those of single steps, bit for bit."""
        ...

    @property
    def speculation(self) -> Speculation | None:
        """What guesses its tokens, if anything does."""
        ...

    def new_filter(self, settings: SamplingSettings) -> TokenFilter:
        """What a sampler does before it draws; the caller closes it."""
        ...

    def step(self, token: int) -> None:
        """Append one token and compute its logits."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens in one batch and compute the logits of each."""
        ...

    def trim(self, n_tokens: int) -> None:
        """Forget all but the first tokens; the logits stay as they are."""
        ...

    def sample(self, sampler: Sampler, row: int = -1) -> int:
        """Draw a token from a row of the last batch's logits; -1 is the last.

        Raises:
            NotFinite: they are NaN or infinite.
        """
        ...

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """A row of the last batch's logits, (n_vocab,); valid until the next token.

        Raises:
            NotFinite: as :meth:`sample`.
        """
        ...

    def export_rows(self, n_tokens: int) -> tuple[KvFormat, Iterator[SavedRows]]:
        """The cache's row format, and the rows of its first tokens, a few at a time."""
        ...

    def restore(self, tokens: Sequence[int], form: KvFormat, batches: Iterator[SavedRows]) -> None:
        """Hold ``tokens``, whose rows a cache of that format exported.

        Rows in types other than this cache's are re-encoded. Rows that do not fit are not used:
        the tokens are computed again, and a note says so.

        Raises:
            PromptError: more tokens than the context holds.
        """
        ...

    @property
    def kv(self) -> KvStatus:
        """Where the KV cache stands."""
        ...

    def take_notes(self) -> tuple[str, ...]:
        """What has happened to the cache since the last call that the user should know."""
        ...

    def memory(self) -> MemoryUse:
        """What is in memory now."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def check_adapter(name: str, known: Sequence[str]) -> None:
    """Refuse an adapter that is not loaded; "" is none.

    Raises:
        SettingsError: see above.
    """
    if name and name not in known:
        there = "no adapter is loaded"
        if known:
            there = f"expected one of {', '.join((*known, NO_ADAPTER))}"
        raise SettingsError(f"{name!r}: {there}", "adapter")


def chosen_adapter(asked: str | None, loaded: Sequence[str]) -> str:
    """The adapter of a text that asks for it by name; for none with ""; None: for the first.

    Raises:
        SettingsError: none of that name is loaded.
    """
    if asked is None:
        return loaded[0] if loaded else ""
    check_adapter(asked, loaded)
    return asked


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of leading tokens that both share; by bisection, since slices compare in C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
