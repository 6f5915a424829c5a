from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from helpers import Converter
from numpy.typing import NDArray

from infer_os.native.batch_context import BatchContext, BatchContextParams, Rows
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import ContextFull, DecodeError, ModelLoadError
from infer_os.native.model import LlamaModel


def rows(*items: tuple[int, int, int, int]) -> Rows:
    """Rows of (token, position, sequence, output)."""
    table = np.array(items, np.int32).T
    return Rows(table[0], table[1], table[2], table[3].astype(np.int8))


def sequence(tokens: Sequence[int], number: int) -> list[tuple[int, int, int, int]]:
    return [(token, i, number, 1) for i, token in enumerate(tokens)]


@pytest.fixture
def model(converted: Converter) -> Iterator[LlamaModel]:
    with LlamaModel(converted()) as loaded:
        yield loaded


@pytest.fixture
def context(model: LlamaModel) -> Iterator[BatchContext]:
    with BatchContext(model, BatchContextParams(64, 4, 1, 64, n_outputs=64)) as made:
        yield made


def alone(model: LlamaModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits of every token, by the context of one sequence."""
    params = ContextParams(64, 1, n_outputs_max=64)
    with Context(model, params) as single:
        single.decode(tokens, 0, outputs=len(tokens))
        return single.logits_rows(len(tokens)).copy()


def test_sequences_do_not_see_each_other(model: LlamaModel, context: BatchContext) -> None:
    prompts = [[5, 6, 7, 8], [9, 3, 2, 1], [7, 7, 7, 7]]
    # shuffled among each other, each in its own order
    items = [item for n in range(4) for s in (2, 0, 1) for item in [sequence(prompts[s], s)[n]]]
    context.decode(rows(*items))
    logits = context.logits(12)
    for s, prompt in enumerate(prompts):
        mine = [i for i, item in enumerate(items) if item[2] == s]
        np.testing.assert_allclose(logits[mine], alone(model, prompt), atol=5e-3)


def test_only_rows_that_want_logits_get_them(model: LlamaModel, context: BatchContext) -> None:
    context.decode(rows((5, 0, 0, 0), (6, 1, 0, 1), (9, 0, 1, 0), (3, 1, 1, 1)))
    logits = context.logits(2)
    np.testing.assert_allclose(logits[0], alone(model, [5, 6])[1], atol=5e-3)
    np.testing.assert_allclose(logits[1], alone(model, [9, 3])[1], atol=5e-3)
    with pytest.raises(DecodeError, match="no 3 rows"):
        context.logits(3)


def test_a_copied_sequence_goes_on_as_its_source(model: LlamaModel, context: BatchContext) -> None:
    context.decode(rows(*sequence([5, 6, 7, 8], 0)))
    context.copy(0, 3)
    context.trim(3, 2)
    context.decode(rows((4, 2, 3, 1), (4, 4, 0, 1)))
    logits = context.logits(2)
    np.testing.assert_allclose(logits[0], alone(model, [5, 6, 4])[2], atol=5e-3)
    np.testing.assert_allclose(logits[1], alone(model, [5, 6, 7, 8, 4])[4], atol=5e-3)


def test_what_llama_cpp_refuses_is_an_error(context: BatchContext) -> None:
    with pytest.raises(DecodeError, match="-1"):
        context.decode(rows((5, 3, 0, 1), (5, 9, 0, 1)))  # positions with a gap
    with pytest.raises(DecodeError, match="batch of 65"):
        context.decode(rows(*[(1, i, 0, 0) for i in range(65)]))
    with pytest.raises(ContextFull):
        for first in range(0, 512, 64):
            context.decode(rows(*[(1, first + i, 0, 0) for i in range(64)]))


def test_a_context_that_cannot_be(model: LlamaModel) -> None:
    with pytest.raises(ModelLoadError, match="300 sequences"):
        BatchContext(model, BatchContextParams(64, 300, 1))


def test_more_rows_of_logits_than_there_is_room_for(model: LlamaModel) -> None:
    """llama.cpp asserts it, which would end the process."""
    with BatchContext(model, BatchContextParams(64, 2, 1, 64, n_outputs=3)) as context:
        with pytest.raises(DecodeError, match=r"4 rows of logits at once; .* room for 3"):
            context.decode(rows(*sequence([5, 6, 7, 8], 0)))
        context.decode(rows(*sequence([5, 6, 7], 0)))  # nothing was computed before
        assert len(context.logits(3)) == 3
    with Context(model, ContextParams(64, 1, n_outputs_max=2)) as single:
        for outputs in (3, -1):
            with pytest.raises(DecodeError, match=r"rows of logits of 4 tokens; .* room for 2"):
                single.decode([5, 6, 7, 8], 0, outputs=outputs)
        with pytest.raises(DecodeError, match="2 rows of logits of 1 tokens"):
            single.decode([5], 0, outputs=2)
        single.decode([5, 6, 7, 8], 0, outputs=2)
