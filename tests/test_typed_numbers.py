"""Numbers as people type them: every option, every place that reads a number from text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from infer_os.cli import app
from infer_os.commands.serving import idle_seconds
from infer_os.commands.typed_numbers import parallel_option
from infer_os.errors import Error
from infer_os.runtime.batch.reading import read_values
from infer_os.runtime.kv.schedule import parse_spec
from infer_os.runtime.sampling_settings import SAMPLER_SETTINGS, read_biases
from infer_os.store.lora import find_adapter

ODD = ("1_0", "٣", "nan", "inf")


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command below this one."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each in list(command.commands):
        yield from commands(command.commands[each], f"{name} {each}")


#: Read as texts, by what :func:`test_texts_with_numbers` calls.
TEXTS = ("--parallel", "--revision")
NUMBERED = [
    pytest.param(command, option, id=f"{name} {option.opts[-1]}")
    for name, command in commands(typer.main.get_command(app), "infer-os")
    for option in command.params
    if option.metavar in ("N", "P", "R", "X", "K", "T")
    and option.opts[-1] not in ("--type", *TEXTS)
]


def test_there_are_options_with_numbers() -> None:
    assert len(NUMBERED) > 150


@pytest.mark.parametrize(("command", "option"), NUMBERED)
def test_an_option_takes_numbers_alone(command: Any, option: Any) -> None:
    for text in (*ODD, " 5"):
        with pytest.raises(Exception, match=r"expected a (whole )?number"):
            command.make_context("x", [option.opts[-1], text])


@pytest.mark.parametrize("number", ODD)
def test_texts_with_numbers(number: str) -> None:
    readers: list[Any] = [
        lambda: idle_seconds(f"{number}m"), lambda: parallel_option(number),
        lambda: read_biases(f"11={number}"), lambda: read_biases(f"{number}=1"),
        lambda: parse_spec(f"f16:{number},q8_0:99"), lambda: find_adapter(f"a/b:{number}"),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(Error):
            read()
    for setting in SAMPLER_SETTINGS.values():
        if setting.is_number:
            with pytest.raises(ValueError, match="number"):
                setting.read(number)


@pytest.mark.parametrize("number", ODD)
def test_fields_of_a_csv(number: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,temperature,max_tokens\nx,{number},{number}\nx, 0.5 , 7 \n")
    (_, bad), (_, good) = read_values(path)
    assert bad == {"prompt": "x", "temperature": number, "max_tokens": number}
    assert good == {"prompt": "x", "temperature": 0.5, "max_tokens": 7}
