"""Blocks that are made while the one before them is in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from infer_os.convert.blocks import ahead


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    with closing(ahead(items())) as made:
        assert next(made) == 1
        assert second.wait(10)  # nobody has asked for it yet
        assert list(made) == [2]


def test_a_failure_arrives_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    with closing(ahead(items())) as made:
        assert next(made) == 1
        with pytest.raises(ValueError, match="damaged"):
            next(made)


def test_closing_waits_for_the_item_in_the_making() -> None:
    """What it reads from may be closed after that."""
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        started.set()
        go_on.wait(10)
        done.set()
        yield 2
        raise AssertionError("nobody wanted a third")

    made = ahead(items())
    assert next(made) == 1
    assert started.wait(10)
    threading.Timer(0.2, go_on.set).start()
    made.close()
    assert done.is_set()
