"""A row per setting of the sampler: complete, and the same set wherever it can be set."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import typer
from helpers import REPOSITORY

from infer_os.cli import app
from infer_os.native.sampler_chain import FILTERS, SamplerChain
from infer_os.runtime.batch.reading import read_values
from infer_os.runtime.batch.records import KNOWN, BadRecord, Record, RecordParser, value_of
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.sampler import add_filters
from infer_os.runtime.sampling_settings import read_biases
from infer_os.runtime.settings import (
    CHAT_SAMPLING,
    CHAT_STOPS,
    CONSTRAINTS,
    SAMPLER_NUMBERS,
    SAMPLER_SETTINGS,
    SamplerSetting,
    SamplingSettings,
    StopSettings,
)
from infer_os.terminal.chat_commands import completions

ROWS = list(SAMPLER_SETTINGS.values())
OPTIONS = {row.name for row in ROWS if row.option}
#: A value that is good, and not the default.
OTHER = {
    "temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.25, "repeat_penalty": 1.25, "seed": 3,
    "grammar": 'root ::= "a"', "json_schema": "true", "regex": "a", "repeat_last_n": 5,
    "presence_penalty": 0.5, "frequency_penalty": -0.25, "dry_multiplier": 0.75, "dry_base": 1.5,
    "dry_allowed_length": 3, "dry_penalty_last_n": 12, "no_repeat_ngram": 4, "min_tokens": 2,
    "top_n_sigma": 1.5, "typical_p": 0.75, "xtc_probability": 0.5, "xtc_threshold": 0.25,
    "dynatemp_range": 0.5, "dynatemp_exponent": 2.0, "mirostat": 2, "mirostat_tau": 3.0,
    "mirostat_eta": 0.25, "adaptive_target": 0.5, "adaptive_decay": 0.75,
    "logit_bias": ((11, -100.0), (198, 2.5)),
}  # fmt: skip
#: As JSON has it, where that is something else.
JSON = {"logit_bias": {"11": -100.0, "198": 2.5}}
ROOT: Any = typer.main.get_command(app)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_complete(row: SamplerSetting) -> None:
    assert row.option
    value = OTHER[row.name]
    if not row.is_constraint:
        assert row.read(row.typed(value)) == value
    assert row.help.endswith(".")
    assert row.kind.expected or row.is_constraint
    assert bool(row.unset) == (row.default in (None, "", ()))
    assert row.kind.convert(row.default) == row.default
    if row.name in FILTERS:
        assert row.kind.is_good(row.off)


def test_every_field_has_a_row_and_every_filter_a_value() -> None:
    assert list(SAMPLER_SETTINGS) == [each.name for each in fields(SamplingSettings)]
    assert SAMPLER_SETTINGS.keys() >= FILTERS.keys()
    assert {row.name for row in ROWS if row.off is not None} == set(FILTERS)
    assert {*SAMPLER_NUMBERS, *CONSTRAINTS, "logit_bias"} == OPTIONS == set(OTHER)


@pytest.mark.parametrize("name", ["generate", "run", "chat", "batch"])
def test_a_command_has_an_option_for_each(name: str) -> None:
    parameters = {each.name: each for each in ROOT.commands[name].params}
    for row in ROWS:
        assert (row.name in parameters) == bool(row.option)
        if row.option:
            assert parameters[row.name].opts == [row.option]
            assert parameters[row.name].help == row.help
            usual = CHAT_SAMPLING if name in ("run", "chat") else SamplingSettings()
            assert (parameters[row.name].default or None) == (getattr(usual, row.name) or None)
    stops = CHAT_STOPS if name in ("run", "chat") else StopSettings()
    assert parameters["max_tokens"].default == stops.max_tokens


def test_records_and_set_have_the_same_names() -> None:
    others = {"id", "prompt", "messages", "n", "stop", "max_tokens", "adapter"}
    assert set(KNOWN) - others == OPTIONS
    assert set(completions()["/set"]) - {"max_tokens"} == OPTIONS


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_record_sets_it_and_comes_back_from_its_json(name: str) -> None:
    parser = RecordParser(SamplingSettings(), StopSettings())
    record = parser.parse(1, {"prompt": "x", name: JSON.get(name, OTHER[name])})
    assert isinstance(record, Record)
    assert getattr(record.sampling_of(0), name) == OTHER[name]
    again = RecordParser(SamplingSettings(), StopSettings()).parse(
        1, json.loads(json.dumps(value_of(record)))
    )
    assert again == record


def test_a_table_has_a_column_of_each(tmp_path: Any) -> None:
    numbers = {name: OTHER[name] for name in SAMPLER_NUMBERS}
    table = tmp_path / "records.csv"
    table.write_text(
        f"prompt,{','.join(numbers)}\nx,{','.join(map(str, numbers.values()))}\n", "utf-8"
    )
    assert list(read_values(table)) == [(2, {"prompt": "x", **numbers})]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("x=1", "'x' is no token: expected tokens with numbers, such as"),
        ("5", "5=: expected"), ("-1=2", "'-1' is no token"), ("5=much", "5=much: expected"),
        ("5=101", "expected tokens with numbers from -100 to 100"), ("5=nan", "expected tokens"),
        ("99999999999=1", "is no token"), ("2147483648=1", "expected tokens"),
    ],
)  # fmt: skip
def test_biases_that_are_none(typed: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        SamplingSettings(logit_bias=read_biases(typed))
    assert refused.value.field == "logit_bias"
    record = RecordParser(SamplingSettings(), StopSettings()).parse(
        1, {"prompt": "x", "logit_bias": typed}
    )
    assert isinstance(record, BadRecord)
    assert record.error.startswith('line 1: "logit_bias" ')


def test_a_filter_that_is_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        SamplerChain, "add_filter", lambda self, name, value: added.append((name, value))
    )
    off: dict[str, Any] = {name: SAMPLER_SETTINGS[name].off for name in FILTERS}
    with SamplerChain() as chain:
        add_filters(chain, SamplingSettings(**off), 8)
        assert added == []
        add_filters(chain, SamplingSettings(**{name: OTHER[name] for name in FILTERS}), 8)  # type: ignore[arg-type]
    assert added == [(name, OTHER[name]) for name in FILTERS]


def test_no_guide_lists_them_by_hand() -> None:
    assert "`min_p`" in (REPOSITORY / "docs" / "sampling.md").read_text("utf-8")
    for page in ("batch.md", "chat.md", "python.md"):
        assert "min_p" not in (REPOSITORY / "docs" / page).read_text("utf-8")
