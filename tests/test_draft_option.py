"""--draft by name: the catalog's partner, a file, or what the text repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Converter

from infer_os.convert.errors import UnreachableError
from infer_os.runtime.settings import EngineSettings
from infer_os.store import loading
from infer_os.store.files import ModelWish, Reporter


class Asked:
    """Stands in for the store: remembers what is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> None:
        self.names: list[str] = []
        self.failure = failure
        self.notes: list[str] = []
        monkeypatch.setattr(loading, "model_file", self.find)

    def find(self, wish: ModelWish, settings: EngineSettings, report: Reporter) -> Path:
        assert settings.draft == "none"
        self.names.append(wish.text)
        if self.failure is not None:
            raise self.failure
        return Path("cache") / f"{wish.name}.gguf"

    def draft(self, option: str, model: str, path: Path) -> str:
        report = Reporter(self.notes.append, lambda label: pytest.fail("nothing is fetched"))
        return loading.draft_file(EngineSettings(draft=option), ModelWish(model), path, report)


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
