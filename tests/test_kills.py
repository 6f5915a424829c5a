"""The trials of benchmarks/kills.py, with a few kills of each command: what it finds, and that it
finds anything."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY

KILLS = 2


@pytest.fixture(scope="module")
def kills() -> Any:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("kills", REPOSITORY / "benchmarks" / "kills.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["convert", "run", "batch", "chat", "download"])
def test_kills_leave_nothing_half_written(kills: Any, place: Path, name: str) -> None:
    with kills.TRIALS[name](place) as trial:
        kills.torment(trial, KILLS, random.Random(f"{name} 2"))
    assert trial.faults == []
    assert trial.kills == KILLS


def test_every_trial_is_tested(kills: Any) -> None:
    assert set(kills.TRIALS) == {"convert", "run", "batch", "chat", "download"}


#: Of each trial: what is put under its folder, and what it knows by then.
SPOILED: dict[str, tuple[dict[str, bytes], dict[str, Any]]] = {
    "convert": ({"out/model.gguf": b"GGUF half"}, {"expected": {"model.gguf": b"GGUF whole"}}),
    "run": ({"cache/models/m.gguf": b"half"}, {"expected": {"m.gguf": b"whole"}}),
    "batch": (
        {"out.jsonl": b'{"id": "a", "text": "x"}\n{"id": "b", "te'},
        {"seen": {"a": "x", "b": "y"}, "expected": {"a": "x", "b": "y"}},
    ),
    "chat": ({}, {"ended": 1, "sent": 2}),
    "download": (
        {"cache/checkpoints/s.safetensors.incomplete": b"of another"},
        {"shards": {"s.safetensors": b"of this one"}, "expected": {}},
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_half_written_or_lost_is_seen(kills: Any, place: Path, name: str) -> None:
    files, known = SPOILED[name]
    with kills.TRIALS[name](place) as trial:
        for key, value in known.items():
            setattr(trial, key, value)
        for file, data in files.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(data)
        trial.check()
    assert len(trial.faults) == 1, trial.faults
