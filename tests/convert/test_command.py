"""What the command ``convert`` adds to the conversion: the type that it chooses itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import PARALLEL

from infer_os import cli
from infer_os.convert.source import HubSource
from infer_os.store import planning
from infer_os.store.planning import finest_type

Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["infer-os", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.mark.parametrize("spelling", ["auto", "AUTO"])
def test_the_chosen_type_is_in_the_report(run: Run, tmp_path: Path, spelling: str) -> None:
    code, out, err = run(
        PARALLEL, "--type", spelling, "-o", tmp_path / "m.gguf", "--dry-run", "--json"
    )
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert any(told["type"] in n and n.startswith("type: auto") for n in told["notes"])


@pytest.mark.parametrize(
    "arguments",
    [["--keep-source"], ["--threads", "-1"], ["-o", "-"], ["--dry-run", "--verify"]],
)
def test_nothing_is_planned_for_arguments_that_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(planning, "finest_type", lambda *a: pytest.fail("planned"))
    code, _, err = run(PARALLEL, "--type", "auto", *arguments)
    assert code == 2
    assert err.startswith("error: ")


def test_the_type_is_that_of_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[HubSource] = []

    def config(source: HubSource) -> object:
        asked.append(source)
        return json.loads((PARALLEL / "config.json").read_text())

    monkeypatch.setattr(planning, "_hub_config", config)
    assert finest_type(HubSource("someone/tiny", "v2")) == finest_type(PARALLEL)
    assert [source.revision for source in asked] == ["v2"]
