"""Costs are measured once per model, settings and machine; a bad file only measures again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Converter

from infer_os.runtime.generate import Generation, stream_text
from infer_os.runtime.open import open_engine
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings
from infer_os.runtime.speculative import rounds
from infer_os.runtime.speculative.stored import CostStore, cost_store

COSTS = {1: 0.5, 4: 0.75}
SETTINGS = EngineSettings(context=64, threads=1, draft="lookup")


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    CostStore(tmp_path / "new", "a").store(COSTS)
    CostStore(tmp_path / "new", "b").store({1: 1.0, 2: 2.0})
    assert CostStore(tmp_path / "new", "a").load() == COSTS
    assert CostStore(tmp_path / "new", "c").load() is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a": 3}', '{"a": {"1": 0.5}}', '{"a": {"1": -1, "2": 1}}',
     '{"a": {"x": 1, "1": 1}}', '{"a": {"1": NaN, "2": 1}}', '{"a": {"2": 1, "4": 1}}'],
)  # fmt: skip
def test_a_bad_file_is_no_measurement(tmp_path: Path, text: str) -> None:
    (tmp_path / "speculative.json").write_text(text)
    store = CostStore(tmp_path, "a")
    assert store.load() is None
    store.store(COSTS)
    assert store.load() == COSTS


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    CostStore(tmp_path / "file", "a").store(COSTS)


def test_old_models_go_first(tmp_path: Path) -> None:
    for i in range(70):
        CostStore(tmp_path, str(i)).store(COSTS)
    assert CostStore(tmp_path, "5").load() is None
    assert CostStore(tmp_path, "6").load() == COSTS


def test_the_key_is_the_file_and_the_settings(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    key = cost_store(tmp_path, model, SETTINGS).key
    assert cost_store(tmp_path, model, SETTINGS).key == key
    changes = [
        {"threads": 2}, {"load": "fast"}, {"kv": "q8_0"}, {"kv_budget": 1 << 20}, {"draft_max": 3},
    ]  # fmt: skip
    keys = {cost_store(tmp_path, model, replace(SETTINGS, **change)).key for change in changes}
    assert len(keys | {key}) == len(changes) + 1
    os.utime(model, (1, 1))
    assert cost_store(tmp_path, model, SETTINGS).key != key


def test_the_second_start_does_not_measure(
    converted: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = rounds.measure_steps
    monkeypatch.setattr(
        rounds, "measure_steps", lambda *given: measured.append(1) or measure(*given)
    )
    for _ in range(2):
        with open_engine(converted(), SETTINGS, cache=tmp_path) as engine:
            text = stream_text(
                engine, [1, 2, 3], SamplingSettings(temperature=0), StopSettings(8), Generation()
            )
            assert list(text)
    assert measured == [1]
