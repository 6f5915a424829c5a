from __future__ import annotations

import pytest
from helpers import Converter

from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.batch.parallel import (
    CurvePoint,
    best_parallel,
    measure_curve,
    most_that_fit,
    plan_batch,
)
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.plan.shapes import header_kv_model
from infer_os.runtime.settings import EngineSettings


def test_the_curve_is_followed_as_long_as_it_rises() -> None:
    seconds = {8: 1.0, 16: 1.2, 32: 2.4}
    now = [0.0]

    def step(n_seq: int) -> None:
        now[0] += seconds[n_seq]

    curve = measure_curve(32, step, lambda: now[0])
    assert [point.n_seq for point in curve] == [8, 16, 32]
    assert [round(point.tokens_per_s, 3) for point in curve] == [8.0, 13.333, 13.333]
    assert best_parallel(curve) == 16
    seconds[16] = 2.0
    assert [point.n_seq for point in measure_curve(32, step, lambda: now[0])] == [8, 16]
    assert [point.n_seq for point in measure_curve(16, step, lambda: now[0])] == [8, 16]


def test_a_slow_machine_is_not_measured_forever() -> None:
    now = [0.0]
    steps: list[int] = []

    def step(n_seq: int) -> None:
        steps.append(n_seq)
        now[0] += 100 / n_seq**0.5

    measure_curve(32, step, lambda: now[0])
    assert len(steps) == 6


def test_best_parallel_of_one() -> None:
    assert best_parallel((CurvePoint(4, 1.0),)) == 4


def test_as_many_as_fit(converted: Converter) -> None:
    header = read_gguf_header(converted())
    settings = EngineSettings(context=128, threads=1)
    sizes = {n: plan_batch(header, settings, n)[0].total for n in (1, 2, 8, 16, 32)}
    assert sorted(sizes.values()) == list(sizes.values())
    for limit, most in ((sizes[32], 32), (sizes[32] - 1, 16), (sizes[16] - 1, 8), (sizes[2], 2)):
        limited = EngineSettings(context=128, threads=1, memory=limit)
        n_seq, plan, _notes = most_that_fit(header, limited)
        assert (n_seq, plan.sizes.n_seq) == (most, most)
    with pytest.raises(MemoryShortage):
        most_that_fit(header, EngineSettings(context=128, threads=1, memory=sizes[1] - 1))


def test_stages_become_the_last_one(converted: Converter) -> None:
    header = read_gguf_header(converted())
    settings = EngineSettings(context=128, threads=1, kv="f32:32,f16:128")
    plan, notes = plan_batch(header, settings, 4)
    assert plan.schedule.spec == "f16"
    assert any("last stage: f16" in note for note in notes)
    assert plan.kv == 4 * plan.schedule.stages[0].n_bytes(header_kv_model(header, 1))
