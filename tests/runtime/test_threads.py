"""The number of threads follows what other programs leave of the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import Converter

from infer_os.native.processors import processors_left
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.settings import EngineSettings
from infer_os.runtime.threads import ThreadCount


class Machine:
    """A machine whose free processors are scripted, one for each sample."""

    def __init__(self, *left: int | None) -> None:
        self.left = list(left)
        self.time = 0.0

    def sample(self) -> int | None:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def count(self, most: int, *, fixed: bool = False) -> ThreadCount:
        return ThreadCount(
            most, fixed=fixed, left=self.sample, clock=lambda: self.time, sleep=lambda _: None
        )


@pytest.mark.parametrize(
    ("left", "threads"),
    [([4], 4), ([9], 4), ([3], 3), ([1], 1), ([0], 1), ([-3], 1), ([None], 4)],
)
def test_a_thread_for_each_free_processor(left: list[int | None], threads: int) -> None:
    assert Machine(*left).count(4).now() == threads


def test_a_task_that_runs_for_a_moment_takes_no_thread() -> None:
    assert Machine(1, 2).count(2).now() == 2
    assert Machine(1, 1, 2).count(2).now() == 2
    assert Machine(1, 1, 1, 2).count(2).now() == 1


def test_it_looks_now_and_then_and_goes_back() -> None:
    machine = Machine(1)
    count = machine.count(2)
    assert count.now() == 1
    machine.left = [2]
    machine.time = 0.01
    assert count.now() == 1
    machine.time = 0.06
    assert count.now() == 2


def test_threads_that_were_asked_for_stay() -> None:
    assert Machine(0).count(2, fixed=True).now() == 2


def write(root: Path, running: int, states: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/loadavg").write_text(f"4.10 4.33 4.26 {running}/125 17570\n")
    for number, state in enumerate(states):
        task = root / "proc/self/task" / str(number)
        task.mkdir(parents=True)
        (task / "stat").write_text(f"{number} (a ) R b) {state} 1 2 3\n")
    return root


@pytest.mark.parametrize(
    ("running", "states", "left"), [(1, "S", 4), (3, "RRS", 3), (3, "RSS", 2), (9, "R", -4)]
)
def test_what_others_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: int, states: str, left: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert processors_left(write(tmp_path, running, states)) == left


def test_where_nobody_says(tmp_path: Path) -> None:
    assert processors_left(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("odd\n")
    assert processors_left(tmp_path) is None


def test_logits_do_not_depend_on_the_number(converted: Converter) -> None:
    found = []
    for script in ([2], [1, 1, 1, 2]):
        with LlamaEngine(converted(kind="q8_0"), EngineSettings(context=128, threads=2)) as engine:
            machine = Machine(*script)
            machine.left = list(script)
            engine._threads = machine.count(2)
            engine.feed(list(range(1, 20)))
            rows = []
            for token in range(5):
                machine.time += 1
                engine.step(token + 1)
                rows.append(engine.logits().copy())
            found.append(np.stack(rows))
    assert np.array_equal(*found)


def test_only_the_default_number_follows_the_machine(
    foreign_weights: None, converted: Converter
) -> None:
    for kind, settings, fixed in (
        ("tq2_0", EngineSettings(context=64), False),
        ("tq2_0", EngineSettings(context=64, threads=2), True),
        ("tq2_0", EngineSettings(context=64, native=False), True),
        ("q8_0", EngineSettings(context=64), True),  # our team waits for nobody
    ):
        with LlamaEngine(converted(kind=kind), settings) as engine:
            assert engine._threads._fixed == (fixed or settings.n_threads == 1)
