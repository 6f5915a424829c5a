"""Settings check themselves: each bad value is refused with the option's name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from infer_os.runtime.errors import SettingsError
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("temperature", [1e-45, 1e6, -0.1, NAN, INF, -INF]),
        ("top_k", [-1, -100, 1 << 31, 1 << 32]),
        ("top_p", [0.0, -0.5, 1.01, NAN, INF]),
        ("min_p", [-0.1, 1.0, 2.0, NAN]),
        ("repeat_penalty", [0.0, -1.0, NAN, INF, 1e-300, 1e6]),
        ("seed", [-1, 0xFFFFFFFF, 1 << 40]),
    ],
)
def test_sampling_refusals(key: str, values: list[Any]) -> None:
    option = "--" + key.replace("_", "-")
    for value in values:
        with pytest.raises(SettingsError, match=f"{option} {value}: expected"):
            SamplingSettings(**{key: value})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("temperature", [0.0, 0.01, 5.0]),
        ("top_k", [0, 1, 1000]),
        ("top_p", [0.001, 1.0]),
        ("min_p", [0.0, 0.999]),
        ("repeat_penalty", [0.5, 1.0, 2.0]),
        ("repeat_last_n", [0, 256]),
        ("seed", [None, 0, 0xFFFFFFFE]),
    ],
)
def test_sampling_bounds_are_allowed(key: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(SamplingSettings(**{key: value}), key) == value


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("context", [-1, 7, (1 << 20) + 1]),
        ("load", ["", "MMAP", "disk"]),
        ("threads", [-1, 513]),
    ],
)
def test_engine_refusals(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SettingsError, match=f"--{key} {value}: expected"):
            EngineSettings(**{key: value})


def test_engine_bounds_are_allowed() -> None:
    for context in (0, 8, 1 << 20):
        EngineSettings(context=context)
    assert EngineSettings(threads=512).n_threads == 512
    assert EngineSettings().n_threads >= 1


@pytest.mark.parametrize("value", [0, -1])
def test_max_tokens_refusals(value: int) -> None:
    with pytest.raises(SettingsError, match=f"--max-tokens {value}: expected 1 or more"):
        StopSettings(value)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(SettingsError, match="--stop"):
        StopSettings(strings=("x", ""))


def test_a_random_seed_is_fresh_and_in_bounds() -> None:
    seeds = {SamplingSettings().chosen_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed < 0xFFFFFFFF for seed in seeds)
    assert SamplingSettings(seed=7).chosen_seed() == 7


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingSettings().top_k = 3  # type: ignore[misc]


def test_a_window_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="repeat_last_n -1: expected"):
        SamplingSettings(repeat_last_n=-1)
