"""Hold a text to a grammar while it is drawn: which tokens may come next.

Between the logits and llama.cpp's samplers: a row of logits goes in, and the tokens that cannot
come next are lowered to minus infinity while a token is drawn. llguidance keeps the state.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConstraintFailed, GrammarError
from .grammar import compiled, limits, one_line
from .model import Vocab


class _Tokens:
    """A vocabulary as llguidance reads one."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocab: Vocab, ends: list[int]) -> None:
        self._vocab = weakref.ref(vocab)
        self.tokens, self.special_token_ids = vocab.plain_pieces()
        self.special_token_ids = sorted({*self.special_token_ids, *ends})
        self.eos_token_id = ends[0]
        self.whole: Any = None

    def __call__(self, data: bytes | str) -> list[int]:
        """Tokens of text that must come: tokenized by the model, if that yields the same text."""
        vocab, plain = self._vocab(), data.encode() if isinstance(data, str) else bytes(data)
        if vocab is not None:
            tokens = vocab.tokenize(plain, add_special=False, parse_special=False)
            if vocab.detokenize(tokens) == plain:
                return tokens
        if self.whole is None:  # called while the tokenizer is being made
            return []
        return list(self.whole.greedy_tokenize(plain.decode("utf-8", "replace")))


_KNOWN: weakref.WeakKeyDictionary[Vocab, Any] = weakref.WeakKeyDictionary()


def _tokenizer(vocab: Vocab) -> Any:
    """A vocabulary's ``LLTokenizer``, made when the first text is constrained.

    Raises:
        GrammarError: the model has no token that could end a text.
    """
    made = _KNOWN.get(vocab)
    if made is None:
        from llguidance import LLTokenizer

        ends = vocab.ends()
        if not ends:
            raise GrammarError("a grammar needs a model with a token that ends a text; it has none")
        tokens = _Tokens(vocab, ends)
        made = LLTokenizer(tokens, n_vocab=vocab.n_tokens, eos_token=ends)  # type: ignore[arg-type]
        tokens.whole = made
        # only making it takes much memory
        tokens.tokens = []
        _KNOWN[vocab] = made
    return made


#: Bytes of a constraint without vocabulary, per token, and per place of the tree of tokens;
#: measured with 2 k to 250 k tokens with few and with many common prefixes.
_BYTES, _TOKEN_BYTES, _PLACE_BYTES = 7_000_000, 190, 100
#: Places per token if the tokens are not known.
_PLACES = 5


def constraint_bytes(n_vocab: int, n_places: int = 0) -> int:
    """Memory that a constraint takes with the vocabulary's tokens and masks.

    ``n_places`` is :func:`count_places` of the tokens, 0 if they are not known.
    """
    return _BYTES + _TOKEN_BYTES * n_vocab + _PLACE_BYTES * (n_places or _PLACES * n_vocab)


def count_places(tokens: Iterable[str]) -> int:
    """Places of the tree that llguidance makes of tokens: one for each of their prefixes."""
    found, last = 0, ""
    for token in sorted(tokens):
        shared = sum(1 for _ in itertools.takewhile(_same, zip(token, last, strict=False)))
        found += len(token) - shared
        last = token
    return found


def _same(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


class TokenConstraint:
    """One text's state: what came, and what may come next."""

    def __init__(self, vocab: Vocab, kind: str, text: str) -> None:
        """Start a text.

        Raises:
            GrammarError: the constraint cannot be used, or not with this vocabulary.
        """
        self._start = _matcher(weakref.ref(vocab), kind, text)
        self._matcher = self._start.deep_copy()
        self._n_vocab = vocab.n_tokens
        self._mask = np.zeros(-(-vocab.n_tokens // 32), np.int32)

    def begin(self) -> None:
        """Start again, with an empty text."""
        self._matcher = self._start.deep_copy()

    def blocked(self) -> NDArray[np.bool_]:
        """The tokens that must not come next, (n_vocab,).

        Raises:
            ConstraintFailed: the constraint exceeded its bounds.
        """
        mask = self._mask
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise self._failed()
        allowed = np.unpackbits(mask.view(np.uint8), count=self._n_vocab, bitorder="little")
        return np.equal(allowed, 0)

    @contextmanager
    def applied(self, logits: NDArray[np.float32]) -> Iterator[None]:
        """Lower what must not come next in a row of logits, (n_vocab,), while inside."""
        kept = logits.copy()
        logits[self.blocked()] = -np.inf
        try:
            yield
        finally:
            logits[:] = kept

    def accept(self, token: int) -> None:
        """Append a token to the text.

        Raises:
            ConstraintFailed: the constraint exceeded its bounds.
        """
        if not self._matcher.consume_token(token):
            raise self._failed()

    def _failed(self) -> ConstraintFailed:
        return ConstraintFailed(
            f"the text cannot be held to its grammar: {one_line(self._matcher.get_error())}"
        )


@functools.lru_cache(maxsize=8)
def _matcher(vocab: weakref.ref[Vocab], kind: str, text: str) -> Any:
    from llguidance import LLMatcher

    known = vocab()
    assert known is not None
    made = LLMatcher(_tokenizer(known), compiled(kind, text), log_level=0, limits=limits())
    if made.is_error():
        raise GrammarError(f"the grammar cannot be used: {one_line(made.get_error())}")
    return made
