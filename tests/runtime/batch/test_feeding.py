"""Reading ahead: what is read, how far, and that the thread ends whatever happens."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from infer_os.runtime.batch.feeding import MOST_BYTES, MOST_RECORDS, Pulled, ReadAhead
from infer_os.runtime.batch.reading import read_pipe
from infer_os.runtime.batch.records import BadRecord, Record, RecordParser
from infer_os.runtime.batch.stopping import Stop
from infer_os.runtime.errors import RuntimeFailure
from infer_os.runtime.settings import SamplingSettings, StopSettings


def record(number: int, prompt: str = "x") -> Record:
    return Record(number, number, SamplingSettings(), StopSettings(), prompt)


def no_reader() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "batch-reader"]


def taken(reader: ReadAhead | Pulled) -> Iterator[Record | BadRecord]:
    while (item := reader.take(wait=True)) is not None:
        yield item
    assert reader.is_over


@pytest.mark.parametrize("kind", [ReadAhead, Pulled])
def test_all_records_come_in_order(kind: type[ReadAhead] | type[Pulled]) -> None:
    items = [record(1), BadRecord(2, "bad"), *(record(i) for i in range(3, 500))]
    reader = kind(items)
    assert not reader.is_over
    assert list(taken(reader)) == items
    assert reader.take(wait=False) is None
    if isinstance(reader, ReadAhead):
        reader.close()
        reader.close()
    assert no_reader()


@pytest.mark.parametrize(
    ("size", "most"),
    [(1, MOST_RECORDS), (100_000, 3), (5_000_000, 1)],
    ids=["many", "long", "huge"],
)
def test_no_more_is_read_than_is_held(size: int, most: int) -> None:
    read: list[int] = []
    full = threading.Event()

    def source() -> Iterator[Record]:
        for number in range(1000):
            read.append(number)
            if len(read) == most:
                full.set()
            yield record(number, "x" * size)

    with ReadAhead(source()) as reader:
        assert full.wait(30)
    assert len(read) == most
    assert (most - 1) * record(1, "x" * size).n_bytes < MOST_BYTES
    read.clear()
    full.clear()
    with ReadAhead(source()) as reader:
        assert full.wait(30)
        for number in range(10):
            got = reader.take(wait=True)
            assert isinstance(got, Record) and got.id == number
    assert len(read) <= 10 + most


def test_a_failure_comes_when_all_before_it_is_answered() -> None:
    failed = threading.Event()

    def source() -> Iterator[Record]:
        yield record(1)
        yield record(2)
        failed.set()
        raise OSError(5, "Input/output error")

    with ReadAhead(source()) as reader:
        assert failed.wait(30)
        assert [reader.take(wait=False), reader.take(wait=False)] == [record(1), record(2)]
        assert reader.take(wait=False) is None
        assert not reader.is_over
        with pytest.raises(OSError, match="Input/output"):
            reader.take(wait=True)
    assert no_reader()


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    ends = os.pipe()
    with os.fdopen(ends[0], "rb") as read, os.fdopen(ends[1], "wb", buffering=0) as write:
        yield read, write


def of_pipe(read: BinaryIO, stop: Stop) -> Iterator[Record | BadRecord]:
    parser = RecordParser(SamplingSettings(), StopSettings())
    for value in read_pipe(read, stop):
        assert not isinstance(value, BadRecord)
        yield parser.parse(*value)


def test_a_record_of_a_pipe_is_there_before_the_next_is_written(
    pipe: tuple[BinaryIO, BinaryIO],
) -> None:
    with Stop() as stop, ReadAhead(of_pipe(pipe[0], stop), stop) as reader:
        for number in range(5):
            assert reader.take(wait=False) is None
            pipe[1].write(b'{"prompt": "It is"}\n')
            got = reader.take(wait=True)
            assert isinstance(got, Record) and got.id == number + 1
        pipe[1].close()
        assert reader.take(wait=True) is None
        assert reader.is_over


@pytest.mark.parametrize("written", [b"", b'{"prompt": "x"}\n', b'{"prompt": "x"}\n{"pro'])
def test_closing_ends_a_read_that_waits(pipe: tuple[BinaryIO, BinaryIO], written: bytes) -> None:
    pipe[1].write(written)
    with Stop() as stop, ReadAhead(of_pipe(pipe[0], stop), stop) as reader:
        if written:
            assert reader.take(wait=True) is not None
    assert no_reader()
    # the pipe itself is as it was
    pipe[1].write(b"more")


def test_ctrl_c_ends_a_wait_and_the_reader(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            pytest.raises(KeyboardInterrupt), Stop() as stop,
            ReadAhead(of_pipe(pipe[0], stop), stop) as reader,
        ):  # fmt: skip
            threading.Thread(target=press).start()
            reader.take(wait=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert no_reader()


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeFailure, match="needs a thread of its own: can't start new thread"):
        ReadAhead([record(1)])
