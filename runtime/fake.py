"""An engine without a model: scripted tokens, to test quickly all that is built on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.native.kv_state import KvFormat
from infer_os.native.sampler_chain import Distribution

from .errors import PromptError
from .interface import EngineInfo, check_adapter, shared_prefix
from .kv.staged import KvStatus, SavedRows
from .memory import MemoryUse
from .sampler import Sampler
from .settings import SamplingSettings
from .speculative.speculation import Speculation

#: The token that ends a generation, and its spelling.
END = 256
END_TEXT = "<|endoftext|>"

#: Decides the next token from the tokens held so far.
Script = Callable[[Sequence[int]], int]


class ByteVocabulary:
    """Every byte is a token; token 256 ends a text."""

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """The text's UTF-8 bytes, and its end tokens if special tokens are read."""
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        parts = data.split(END_TEXT.encode()) if parse_special else [data]
        tokens = list(parts[0])
        for part in parts[1:]:
            tokens += [END, *part]
        return tokens

    def fewest_tokens(self, text: str | bytes, most: int) -> int:
        """As if each token were the longest."""
        fewest = len(text) // len(END_TEXT)
        return fewest if fewest > most else 0

    def piece(self, token: int) -> bytes:
        """The byte."""
        return b"" if token == END else bytes([token])

    def is_end(self, token: int) -> bool:
        """Whether it is token 256."""
        return token == END

    def special_texts(self) -> list[str]:
        """The end token."""
        return [END_TEXT]

    def special_text(self, name: str) -> str:
        """The end token; there is no start token."""
        return END_TEXT if name == "eos" else ""


class FakeSampler:
    """Draws what the script says."""

    def __init__(self) -> None:
        self.remembered: list[int] = []

    def draw(self, source: int, row: int = -1) -> int:
        """The scripted token."""
        return source

    def remember(self, tokens: Iterable[int]) -> None:
        """Keep them, for a test to look at."""
        self.remembered.extend(tokens)

    def accept(self, token: int) -> None:
        """Keep it as well."""
        self.remembered.append(token)

    def close(self) -> None:
        """Nothing to free."""


class FakeFilter:
    """Keeps every token of a row of logits."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Nothing is remembered."""

    def accept(self, token: int) -> None:
        """Nothing is remembered."""

    def distribution(self, logits: NDArray[np.float32]) -> Distribution:
        """Softmax."""
        p = np.exp(logits.astype(np.float64))
        return Distribution(np.arange(len(logits), dtype=np.int32), p / p.sum())

    def close(self) -> None:
        """Nothing to free."""


class FakeEngine:
    """An :class:`~.interface.Engine` whose next token is ``script(tokens held)``.

    ``computed`` counts the tokens that a model would have computed.
    """

    def __init__(
        self, script: Script, n_ctx: int = 64, *, chat_template: str | None = None
    ) -> None:
        self._script = script
        self._tokens: list[int] = []
        # for each row of logits, the tokens before it
        self._rows: list[list[int]] = []
        self.speculation: Speculation | None = None
        self.vocab = ByteVocabulary()
        self.n_ctx = n_ctx
        self.computed = 0
        self.adapter = self.adapter_identity = ""
        self.info = EngineInfo(Path("fake.gguf"), "fake", "Fake", n_ctx, 1, None, chat_template, ())

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens fed so far."""
        return self._tokens

    def use_adapter(self, name: str) -> None:
        """There is none."""
        check_adapter(name, ())

    def new_sampler(self, settings: SamplingSettings) -> FakeSampler:
        """A sampler that follows the script."""
        return FakeSampler()

    def feed(self, tokens: Sequence[int]) -> int:
        """See :meth:`~.interface.Engine.feed`."""
        if not tokens:
            raise PromptError("the prompt is empty: it has no tokens to continue from")
        if len(tokens) > self.n_ctx:
            raise PromptError(f"the prompt has {len(tokens)} tokens, the context {self.n_ctx}")
        shared = min(shared_prefix(self._tokens, tokens), len(tokens) - 1)
        self._tokens = list(tokens)
        self._rows = [list(tokens)]
        self.computed += len(tokens) - shared
        return len(tokens) - shared

    @property
    def room(self) -> int:
        """All of the context."""
        return self.n_ctx - len(self._tokens)

    def rows_alike(self) -> int:
        """A script does not round."""
        return self.n_ctx

    def new_filter(self, settings: SamplingSettings) -> FakeFilter:
        """A filter that keeps what the script says."""
        return FakeFilter()

    def step(self, token: int) -> None:
        """Append a token."""
        self.extend([token])

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        self._rows = [[*self._tokens, *tokens[: i + 1]] for i in range(len(tokens))]
        self._tokens.extend(tokens)
        self.computed += len(tokens)

    def trim(self, n_tokens: int) -> None:
        """Forget the others."""
        del self._tokens[n_tokens:]

    def sample(self, sampler: Sampler, row: int = -1) -> int:
        """The scripted token."""
        return sampler.draw(self._script(self._rows[row]))

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """All of the weight on the scripted token."""
        logits = np.full(END + 1, -100, np.float32)
        logits[self._script(self._rows[row])] = 0
        return logits

    def export_rows(self, n_tokens: int) -> tuple[KvFormat, Iterator[SavedRows]]:
        """No rows."""
        return KvFormat("f16", "f16"), iter(())

    def restore(self, tokens: Sequence[int], form: KvFormat, batches: Iterator[SavedRows]) -> None:
        """See :meth:`~.interface.Engine.restore`."""
        if len(tokens) > self.n_ctx:
            raise PromptError(f"{len(tokens)} tokens are held, the context has {self.n_ctx}")
        for _rows in batches:
            pass
        self._tokens = list(tokens)

    @property
    def kv(self) -> KvStatus:
        """A cache of a byte per token."""
        return KvStatus(
            1, 1, "f16", self.n_ctx, len(self._tokens), self.n_ctx, self.n_ctx, self.n_ctx, "f16"
        )

    def take_notes(self) -> tuple[str, ...]:
        """Nothing happens here."""
        return ()

    def memory(self) -> MemoryUse:
        """Nothing is held."""
        return MemoryUse()

    def close(self) -> None:
        """Nothing to free."""


def saying(reply: str) -> Script:
    """A script that answers every prompt with ``reply`` and ends."""
    data = reply.encode()
    start: list[int] = []

    def script(tokens: Sequence[int]) -> int:
        # a prompt is what was fed at once: remember where the reply began
        if not start or len(tokens) < start[0] or len(tokens) > start[0] + len(data):
            start[:] = [len(tokens)]
        said = len(tokens) - start[0]
        return data[said] if said < len(data) else END

    return script
