"""--draft by name: the catalog's partner, a file, or what the text repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Converter

from infer_os.convert.errors import UnreachableError
from infer_os.runtime.settings import EngineSettings
from infer_os.store import opening
from infer_os.store.reporter import Reporter
from infer_os.store.wish import ModelWish


class Asked:
    """Stands in for the store: remembers what is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> None:
        self.names: list[str] = []
        self.failure = failure
        self.notes: list[str] = []
        monkeypatch.setattr(opening, "model_file", self.find)

    def find(self, wish: ModelWish, settings: EngineSettings, report: Reporter) -> Path:
        assert settings.draft == "none"
        self.names.append(wish.text)
        if self.failure is not None:
            raise self.failure
        return Path("cache") / f"{wish.name}.gguf"

    def draft(self, option: str, model: str, path: Path) -> str:
        report = Reporter(self.notes.append, lambda label: pytest.fail("nothing is fetched"))
        settings = EngineSettings(draft=option)
        return opening.draft_file(settings, ModelWish(model), path, report)[0]


@pytest.mark.parametrize("option", ["none", "lookup"])
def test_no_model_is_needed(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    asked = Asked(monkeypatch)
    assert asked.draft(option, "gpt-j-6B", Path("x")) == option
    assert asked.names == []


def test_a_name_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    assert asked.draft("distilgpt2", "gpt-j-6B", Path("x")) == "cache/distilgpt2.gguf"


@pytest.mark.parametrize("model", ["gpt-j-6B", "EleutherAI/gpt-j-6B"])
def test_auto_is_the_partner(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    asked = Asked(monkeypatch)
    assert asked.draft("auto", model, Path("x")) == "cache/distilgpt2.gguf"
    assert asked.names == ["distilbert/distilgpt2"]
    assert asked.notes == []


def test_a_model_without_a_partner(monkeypatch: pytest.MonkeyPatch, converted: Converter) -> None:
    asked = Asked(monkeypatch)
    assert asked.draft("auto", "m.gguf", converted()) == "lookup"
    assert asked.notes == ["note: --draft auto: no draft is known for this model; lookup is used"]


def test_a_partner_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, UnreachableError("no network"))
    assert asked.draft("auto", "gpt-j-6B", Path("x")) == "lookup"
    assert asked.notes == ["note: --draft auto: no network; lookup is used"]
    with pytest.raises(UnreachableError):
        asked.draft("distilgpt2", "gpt-j-6B", Path("x"))


def test_no_rate_is_claimed_before_the_first_guess() -> None:
    from types import SimpleNamespace
    from typing import Any

    from infer_os.runtime.speculative.figures import DrafterReport, SpeculationReport
    from infer_os.terminal.render import speculation_line

    def line(*drafters: DrafterReport) -> str:
        report = SpeculationReport(drafters, 10.0, {})
        engine: Any = SimpleNamespace(speculation=SimpleNamespace(report=lambda: report))
        return str(speculation_line(engine))

    idle = DrafterReport("lookup", 0, 0, 0, 0.4, 0.01, 1.0, True)
    assert line(idle) == "[guesses: none; plain steps would give 10.0/s | lookup: no guess]"
    used = DrafterReport("lookup", 8, 6, 3, 0.7, 0.01, 1.5, True)
    assert line(used).endswith("| lookup: 6 of 8 right, 70 % of late]")
    off = DrafterReport("gpt2", 8, 1, 3, 0.1, 0.01, 0.8, False)
    assert line(off).endswith(
        "gpt2: 1 of 8 right, 10 % of late, off: expected 0.80 times the speed]"
    )
