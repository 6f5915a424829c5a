"""The tree of errors: what the package exports catches every one of ours, and no other comes."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY
from test_layout import SOURCES

import infer_os
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.settings import StopSettings

#: How a person leaves a chat is no error.
#: Never leave the package: ends of a chat and of a reader, and what becomes a line of text.
CONTROL = {"BadValue", "ChatEnd", "JsonError", "ReadingStopped", "StreamError"}
EXPORTED = {
    value for name in infer_os.__all__
    if inspect.isclass(value := getattr(infer_os, name)) and issubclass(value, Exception)
}  # fmt: skip


def own_errors() -> Iterator[type[Exception]]:
    """Every exception class that a module of the package defines for others."""
    for source in SOURCES:
        module = (
            f"infer_os.{source.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}"
        )
        if source in ("__init__.py", "lm_harness.py"):  # the latter needs lm_eval, and has none
            continue
        for word, value in vars(importlib.import_module(module)).items():
            if (
                inspect.isclass(value) and issubclass(value, Exception)
                and value.__module__ == module and not word.startswith("_")
                and word not in CONTROL
            ):  # fmt: skip
                yield value


def test_every_error_has_the_one_root() -> None:
    found = set(own_errors())
    assert len(found) > 30
    assert {error for error in found if not issubclass(error, infer_os.Error)} == set()


def test_every_error_is_caught_by_an_exported_one() -> None:
    broad = EXPORTED - {infer_os.Error}
    assert infer_os.SettingsError in broad
    for error in set(own_errors()) - {infer_os.Error}:
        assert any(issubclass(error, caught) for caught in broad), error


def test_the_guide_draws_the_tree() -> None:
    guide = (REPOSITORY / "docs" / "python.md").read_text()
    drawn = set(re.findall(r"[├└]── (\w+)", guide))
    assert {error.__name__ for error in EXPORTED} - {"Error"} == drawn


# ---- what comes from below


def open_model() -> infer_os.Model:
    """A model of a scripted engine."""

    def no_batch(settings: BatchSettings) -> Any:
        raise AssertionError("a batch was opened")

    return infer_os.Model(FakeEngine(saying("Hi.")), no_batch)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.gguf").write_text("this is no model")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model_type": "gpt2", "n_layer": "many"}')
    (tmp_path / "bad" / "model.safetensors").touch()
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("text.gguf", infer_os.GgufError),
        ("empty.gguf", infer_os.GgufError),
        ("missing.gguf", infer_os.SourceError),
        ("folder", infer_os.SourceError),
        ("bad", infer_os.Error),
        ("loop.gguf", infer_os.Error),
        ("x" * 5000, infer_os.Error),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(place: Path, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        infer_os.load(place / name)


SETTINGS, PROMPT = infer_os.SettingsError, infer_os.PromptError
Wrong = tuple[Callable[[Any], object], type[Exception], str]
#: Calls of the package and of a model; ``Any`` lets them be wrong.
LOAD: Any = infer_os.load
WRONG: list[Wrong] = [
    (lambda m: LOAD(5), SETTINGS, "model 5: expected a text or a path"),
    (lambda m: LOAD("x", type=8), SETTINGS, "type 8: expected a text"),
    (lambda m: LOAD("x", settings={}), SETTINGS, "settings {}: expected EngineSettings"),
    (lambda m: LOAD("x", type="q9"), infer_os.UnsupportedError, "q9"),
    (lambda m: m.generate(5), PROMPT, "prompt 5: expected a text"),
    (lambda m: m.generate(b"x"), PROMPT, "prompt b'x': expected a text"),
    (lambda m: m.stream(None), PROMPT, "prompt None: expected a text"),
    (lambda m: m.tokenize(["x"]), PROMPT, "expected a text"),
    (lambda m: m.generate("x", stops=5), SETTINGS, "stops 5: expected StopSettings"),
    (lambda m: m.generate("x", sampling=StopSettings()), SETTINGS, "sampling StopSettings("),
    (lambda m: m.batch("text"), PROMPT, "only one; put it in a list"),
    (lambda m: m.batch({"id": 1, "prompt": "x"}), PROMPT, "only one"),
    (lambda m: m.batch(5), PROMPT, "records 5: expected a list"),
    (lambda m: m.batch([], settings=4), SETTINGS, "settings 4: expected BatchSettings"),
    (lambda m: m.chat(system=3), SETTINGS, "system 3: expected a text"),
    (lambda m: m.chat(style=None), SETTINGS, "style None: expected a text"),
    (lambda m: m.chat(style="baroque"), SETTINGS, "style baroque: expected one of"),
    (lambda m: m.chat(stops="x"), SETTINGS, "stops 'x': expected StopSettings"),
    (lambda m: m.chat(style="plain").say(5), PROMPT, "message 5: expected a text"),
    (lambda m: m.chat(style="plain").save(5), SETTINGS, "path 5: expected"),
    (lambda m: m.chat(style="plain").load(None), SETTINGS, "path None: expected"),
]


@pytest.mark.parametrize(("wrong", "kind", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_an_argument_that_cannot_be(
    wrong: Callable[[Any], object], kind: type[Exception], says: str
) -> None:
    model = open_model()
    with pytest.raises(kind, match=re.escape(says)):
        wrong(model)
    assert model.generate("x").text == "Hi."  # nothing was begun
