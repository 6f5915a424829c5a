from __future__ import annotations

import random

from infer_os.runtime.batch.order import InputOrder
from infer_os.runtime.batch.records import BadRecord, Record, Result
from infer_os.runtime.settings import SamplingSettings, StopSettings


def record(line: int, n: int = 1) -> Record:
    return Record(line, line, SamplingSettings(), StopSettings(), "x", n=n)


def test_results_come_in_the_order_of_the_input() -> None:
    records = [record(1), BadRecord(2, "bad"), record(3, n=3), record(4), record(5), record(6, 2)]
    results = [
        Result(1, 1), Result(None, 2, error="bad"), *(Result(3, 3, index=i) for i in range(3)),
        Result(4, 4, error="too long"), Result(6, 6, index=1),
    ]  # fmt: skip
    for seed in range(20):
        shuffled = random.Random(seed).sample(results, len(results))
        order = InputOrder()
        # 5 and the first sample of 6 were answered by an earlier run
        for _record in order.watch(records, frozenset({(5, 0), (6, 0)})):
            pass
        assert list(order.arrange(shuffled)) == results


def test_what_can_be_told_is_told() -> None:
    order = InputOrder()
    source = order.watch([record(1), record(2)], frozenset())
    next(source)
    assert list(order.arrange([Result(1, 1)])) == [Result(1, 1)]
    next(source)
    assert list(order.arrange([Result(2, 2)])) == [Result(2, 2)]


def test_samples_that_outlive_an_error_of_their_record_are_not_lost() -> None:
    order = InputOrder()
    for _record in order.watch([record(1, n=3), record(2)], frozenset()):
        pass
    results = [
        Result(1, 1, index=0), Result(1, 1, error="failed"), Result(1, 1, index=2), Result(2, 2),
    ]  # fmt: skip
    assert list(map(_key, order.arrange(results))) == [
        (1, 0, False), (1, None, True), (1, 2, False), (2, None, False),
    ]  # fmt: skip


def _key(result: Result) -> tuple[int, int | None, bool]:
    return result.line, result.index, result.error is not None
