"""Settings check themselves: each bad value is refused with the option's name."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

from infer_os.measure.quality import QualitySettings
from infer_os.measure.settings import BenchSettings
from infer_os.runtime.batch.settings import BatchSettings
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
        ("seed", [-2, 0xFFFFFFFF, 1 << 40]),
        ("presence_penalty", [-100.5, 101, NAN, INF]),
        ("frequency_penalty", [-100.5, 101, NAN, -INF]),
        ("dry_multiplier", [-0.1, 100.5, NAN]),
        ("dry_base", [0.99, 101, NAN]),
        ("dry_allowed_length", [0, -1, 1 << 31]),
        ("dry_penalty_last_n", [-1, 1 << 31]),
        ("no_repeat_ngram", [-1, 1 << 31]),
        ("min_tokens", [-1, 1 << 31]),
        ("top_n_sigma", [-1, 1001, NAN]),
        ("typical_p", [0.0, 1.01, NAN]),
        ("xtc_probability", [-0.1, 1.1, NAN]),
        ("xtc_threshold", [0.0, 0.51, NAN]),
        ("dynatemp_range", [-0.1, 1001, NAN]),
        ("dynatemp_exponent", [0.0, 101, NAN]),
        ("mirostat", [-1, 1, 3]),
        ("mirostat_tau", [0.0, 101, NAN]),
        ("mirostat_eta", [-0.1, 1.1, NAN]),
        ("adaptive_target", [-0.5, 1.1, NAN]),
        ("adaptive_decay", [-0.1, 1.0, NAN]),
    ],
)
def test_sampling_refusals(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SettingsError, match=f"^{key} {value}: expected") as refused:
            SamplingSettings(**{key: value})
        assert refused.value.field == key


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
        ("presence_penalty", [-100, 0, 100.0]),
        ("frequency_penalty", [-100, 0, 100.0]),
        ("dry_multiplier", [0, 100]),
        ("dry_base", [1, 100]),
        ("dry_allowed_length", [1, 100]),
        ("dry_penalty_last_n", [0, (1 << 31) - 1]),
        ("no_repeat_ngram", [0, 1]),
        ("min_tokens", [0, 100000]),
        ("top_n_sigma", [0, 0.01, 1000]),
        ("typical_p", [0.001, 1.0]),
        ("xtc_probability", [0, 1]),
        ("xtc_threshold", [0.001, 0.5]),
        ("dynatemp_range", [0, 1000]),
        ("dynatemp_exponent", [0.01, 100]),
        ("mirostat", [0, 2]),
        ("mirostat_tau", [0.01, 100]),
        ("mirostat_eta", [0, 1]),
        ("adaptive_target", [-1, 0, 1]),
        ("adaptive_decay", [0, 0.99]),
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
        ("kv_budget", [-1]),
        ("memory", [-1, 1 << 63]),
        ("draft_max", [0, 32]),
    ],
)
def test_engine_refusals(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SettingsError, match=f"^{key} {value}: expected"):
            EngineSettings(**{key: value})


@pytest.mark.parametrize("kv", ["f17", "f16:512,q8_0:256", "f16:8,"])
def test_a_cache_that_is_none_is_refused_before_loading(kv: str) -> None:
    with pytest.raises(SettingsError, match=f"--kv {kv}: "):
        EngineSettings(kv=kv)


@pytest.mark.parametrize("kv", ["", "auto", "AUTO", "Q8_0/f16", "f16:512,q8_0:1024,q4_0"])
def test_a_cache_that_some_model_may_have(kv: str) -> None:
    assert EngineSettings(kv=kv).kv == kv


def test_engine_bounds_are_allowed() -> None:
    for context in (0, 8, 1 << 20):
        EngineSettings(context=context)
    assert EngineSettings(threads=512).n_threads == 512
    assert EngineSettings().n_threads >= 1


@pytest.mark.parametrize("value", [0, -2])
def test_max_tokens_refusals(value: int) -> None:
    with pytest.raises(SettingsError, match=f"max_tokens {value}: expected 1 or more, or -1"):
        StopSettings(value)


def test_minus_one_sets_no_limit() -> None:
    assert StopSettings(5).limit == 5
    assert StopSettings(-1).limit > 1 << 40


def test_minus_one_is_a_random_seed() -> None:
    settings = SamplingSettings(seed=-1)
    assert settings == SamplingSettings()
    assert settings.chosen_seed() != settings.chosen_seed()


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"strings \('x', ''\): expected none of them empty"):
        StopSettings(strings=("x", ""))


#: Values of a wrong type: what is refused of each kind of field.
NO_WHOLE = [1.5, 1.0, "3", None, True, NAN, [1], 1j]
NO_NUMBER = ["hot", None, False, [0.5], 1j]
NO_TEXT = [3, None, b"f16", ["f16"]]
NO_FLAG = [1, 0, None, "yes"]
WRONG: list[tuple[type, str, list[Any]]] = [
    (SamplingSettings, "temperature", NO_NUMBER),
    (SamplingSettings, "top_k", NO_WHOLE),
    (SamplingSettings, "top_p", NO_NUMBER),
    (SamplingSettings, "min_p", NO_NUMBER),
    (SamplingSettings, "repeat_penalty", NO_NUMBER),
    (
        SamplingSettings,
        "logit_bias",
        [5, "a", {1: 2}, [(1,)], [(1, "a")], [(True, 1)], [(1.5, 1)], [1, 2]],
    ),
    (SamplingSettings, "repeat_last_n", NO_WHOLE),
    (SamplingSettings, "presence_penalty", NO_NUMBER),
    (SamplingSettings, "frequency_penalty", NO_NUMBER),
    (SamplingSettings, "dry_multiplier", NO_NUMBER),
    (SamplingSettings, "dry_base", NO_NUMBER),
    (SamplingSettings, "dry_allowed_length", NO_WHOLE),
    (SamplingSettings, "dry_penalty_last_n", NO_WHOLE),
    (SamplingSettings, "no_repeat_ngram", NO_WHOLE),
    (SamplingSettings, "min_tokens", NO_WHOLE),
    (SamplingSettings, "top_n_sigma", NO_NUMBER),
    (SamplingSettings, "typical_p", NO_NUMBER),
    (SamplingSettings, "xtc_probability", NO_NUMBER),
    (SamplingSettings, "xtc_threshold", NO_NUMBER),
    (SamplingSettings, "dynatemp_range", NO_NUMBER),
    (SamplingSettings, "dynatemp_exponent", NO_NUMBER),
    (SamplingSettings, "mirostat", NO_WHOLE),
    (SamplingSettings, "mirostat_tau", NO_NUMBER),
    (SamplingSettings, "mirostat_eta", NO_NUMBER),
    (SamplingSettings, "adaptive_target", NO_NUMBER),
    (SamplingSettings, "adaptive_decay", NO_NUMBER),
    (SamplingSettings, "seed", [value for value in NO_WHOLE if value is not None]),
    (SamplingSettings, "grammar", NO_TEXT),
    (SamplingSettings, "json_schema", NO_TEXT),
    (SamplingSettings, "regex", NO_TEXT),
    (StopSettings, "max_tokens", NO_WHOLE),
    (StopSettings, "strings", ["abc", 3, None, ("a", 1), {"a": 1}, b"abc"]),
    (EngineSettings, "context", NO_WHOLE),
    (EngineSettings, "load", NO_TEXT),
    (EngineSettings, "threads", NO_WHOLE),
    (EngineSettings, "kv", NO_TEXT),
    (EngineSettings, "kv_budget", NO_WHOLE),
    (EngineSettings, "memory", [*NO_WHOLE, "12G"]),
    (EngineSettings, "prefetch", NO_FLAG),
    (EngineSettings, "drop_pages", NO_FLAG),
    (EngineSettings, "draft", NO_TEXT),
    (EngineSettings, "draft_max", NO_WHOLE),
    (EngineSettings, "native", NO_FLAG),
    (EngineSettings, "extras", [None, "session", ["session"], {"session"}]),
    (EngineSettings, "adapters", [None, "a", ["a"], ("a",)]),
    (BatchSettings, "parallel", [*NO_WHOLE, "auto"]),
    (BatchSettings, "logprobs", NO_WHOLE),
    (BatchSettings, "beams", NO_WHOLE),
    (BatchSettings, "prefix", NO_TEXT),
    (BatchSettings, "system", NO_TEXT),
    (BatchSettings, "style", NO_TEXT),
    (BenchSettings, "depths", ["0,512", 5, (1.5,), (True,)]),
    (BenchSettings, "batches", ["1,2", None, ("1",)]),
    (BenchSettings, "repeats", NO_WHOLE),
    (BenchSettings, "n_prompt", NO_WHOLE),
    (BenchSettings, "n_decode", NO_WHOLE),
    (QualitySettings, "window", NO_WHOLE),
    (QualitySettings, "windows", NO_WHOLE),
    (QualitySettings, "threads", NO_WHOLE),
]


@pytest.mark.parametrize(("record", "key", "values"), WRONG, ids=lambda given: str(given)[:40])
def test_a_value_of_another_type(record: type, key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SettingsError, match=f"^{key} .*: expected (a |True)") as refused:
            record(**{key: value})
        assert (refused.value.field, "\n" in str(refused.value)) == (key, False)


@pytest.mark.parametrize(
    "record",
    [SamplingSettings, StopSettings, EngineSettings, BatchSettings, BenchSettings, QualitySettings],
)
def test_no_field_goes_unchecked(record: type) -> None:
    checked = {key for kind, key, _ in WRONG if kind is record}
    assert checked == {field.name for field in dataclasses.fields(record)}


def test_numbers_of_numpy_become_plain() -> None:
    settings = SamplingSettings(temperature=np.float32(0.5), top_k=np.int64(5), seed=np.uint8(7))
    assert settings == SamplingSettings(temperature=0.5, top_k=5, seed=7)
    assert [type(v) for v in (settings.temperature, settings.top_k, settings.seed)] == [
        float, int, int,
    ]  # fmt: skip
    assert StopSettings(strings=["a"]).strings == ("a",)  # type: ignore[arg-type]


def test_an_enormous_value_is_shown_in_short() -> None:
    with pytest.raises(SettingsError) as refused:
        SamplingSettings(temperature="x" * 100_000)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 200
    with pytest.raises(SettingsError, match="expected 0"):
        SamplingSettings(temperature=10**400)


def test_an_error_is_spelled_as_where_it_was_set() -> None:
    with pytest.raises(SettingsError) as refused:
        SamplingSettings(top_k=-5)
    for error in (refused.value, pickle.loads(pickle.dumps(refused.value))):
        assert str(error).startswith("top_k -5: expected")
        assert error.spelled("--top-k").startswith("--top-k -5: expected")
    assert SettingsError("no such thing").spelled("--top-k") == "no such thing"


def test_a_random_seed_is_fresh_and_in_bounds() -> None:
    seeds = {SamplingSettings().chosen_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed < 0xFFFFFFFF for seed in seeds)
    assert SamplingSettings(seed=7).chosen_seed() == 7


def test_mirostat_takes_the_place_of_the_filters_that_are_asked_for() -> None:
    with pytest.raises(
        SettingsError, match=r"^mirostat 2: it takes the place of typical_p, adaptive_target"
    ):
        SamplingSettings(mirostat=2, typical_p=0.9, adaptive_target=0.0)
    assert SamplingSettings(mirostat=2, top_k=5, presence_penalty=1).adapts


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingSettings().top_k = 3  # type: ignore[misc]


def test_a_window_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match=r"^repeat_last_n -1: expected"):
        SamplingSettings(repeat_last_n=-1)
