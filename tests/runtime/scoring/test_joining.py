"""Which tokens are scored, against the rules of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from infer_os.runtime.errors import PromptError
from infer_os.runtime.scoring.joining import Window, cut_text, join_pair, text_tokens

#: Two letters that are one token together, and the token that begins texts.
PAIRS, OPENING = {"ab": 1000, " b": 1001, "^": 0}, 0


class Letters:
    """A vocabulary of letters and a few pairs; ``before`` is put in front of every text."""

    def __init__(self, opening: int | None = OPENING, before: tuple[int, ...] = ()) -> None:
        self.opening, self.before = opening, before

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        assert isinstance(text, str) and parse_special
        tokens, at = [*self.before] if add_special else [], 0
        while at < len(text):
            pair = next((pair for pair in PAIRS if text.startswith(pair, at)), text[at])
            tokens.append(PAIRS.get(pair, ord(pair[0])))
            at += len(pair)
        return tokens


def joined(context: str, continuation: str, n_ctx: int = 50) -> tuple[list[int], list[int]]:
    window, n_cut = join_pair(Letters(), context, continuation, n_ctx)
    assert n_cut == 0
    return list(window.tokens[: window.first]), list(window.tokens[window.first :])


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_blanks_of_the_context_belong_to_the_continuation() -> None:
    assert joined("x", " bc") == (codes("x"), [1001, ord("c")])
    assert joined("x ", "bc") == joined("x", " bc")
    assert joined("x \n ", "bc") == (codes("x"), [*codes(" \n"), 1001, ord("c")])


def test_both_are_cut_into_tokens_as_one_text() -> None:
    # the harness takes the context's own tokens, and as many fewer of the whole
    assert joined("xa", "bc") == (codes("xa"), codes("c"))
    with pytest.raises(PromptError, match="no tokens of its own"):
        joined("xa", "b")


def test_without_a_context_the_token_that_begins_texts_stands_for_it() -> None:
    assert joined("", "xy") == ([OPENING], codes("xy"))
    assert joined("  ", "xy") == ([OPENING], codes("  xy"))
    assert joined("", "^xy") == ([OPENING], codes("xy"))
    for nothing in ("", "^"):
        with pytest.raises(PromptError, match="no tokens of its own"):
            joined("", nothing)
    with pytest.raises(PromptError, match="names no token"):
        join_pair(Letters(opening=None), "", "xy", 50)


def test_what_the_model_wants_around_a_text_stands_before_the_context() -> None:
    window, _ = join_pair(Letters(before=(7,)), "x", "yz", 50)
    assert window == Window((7, *codes("xyz")), 2)
    # but not twice where there is none
    assert join_pair(Letters(before=(7,)), "", "yz", 50)[0] == Window((OPENING, *codes("yz")), 1)


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    # the last token is not fed, so one more than the context holds can be scored
    assert join_pair(Letters(), "0123456", "xyz", 9) == (Window(tuple(codes("0123456xyz")), 7), 0)
    assert join_pair(Letters(), "0123456", "xyz", 8) == (Window(tuple(codes("123456xyz")), 6), 1)
    assert join_pair(Letters(), "0123456", "xyz", 3) == (Window(tuple(codes("6xyz")), 1), 6)
    with pytest.raises(PromptError, match="has 3 tokens, but the context holds 2"):
        join_pair(Letters(), "0123456", "xyz", 2)


def rolling(tokens: list[int], n_ctx: int) -> Iterator[tuple[list[int], list[int]]]:
    """lm_eval 0.4.13: utils.get_rolling_token_windows with context_len 1, made disjoint."""

    def disjoint(a: list[int], b: list[int]) -> tuple[list[int], list[int]]:
        return a[: len(a) - (len(b) - 1)], b

    first = min(n_ctx, len(tokens))
    yield disjoint([OPENING, *tokens[: first - 1]], tokens[:first])
    predicted = first
    while predicted < len(tokens):
        n = min(len(tokens) - predicted, n_ctx)
        end = predicted + n
        yield disjoint(tokens[end - n_ctx - 1 : end - 1], tokens[end - n : end])
        predicted += n


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 24, 61])
@pytest.mark.parametrize("n_ctx", [1, 2, 8])
def test_windows_of_a_text_are_those_of_the_harness(length: int, n_ctx: int) -> None:
    tokens = text_tokens(Letters(), "".join(chr(100 + i) for i in range(length)))
    assert tokens.dtype == np.int32
    windows = list(cut_text(tokens, n_ctx))
    assert [(list(w.tokens[: w.first]), list(w.tokens[w.first :])) for w in windows] == list(
        rolling([int(token) for token in tokens[1:]], n_ctx)
    )
    assert sum(window.n_scored for window in windows) == length


def test_an_empty_text_has_no_tokens() -> None:
    with pytest.raises(PromptError, match="the text is empty"):
        text_tokens(Letters(), "")
