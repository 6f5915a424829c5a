"""``--prompt-cache``: a prompt's rows in a file, taken again, and never taken wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import BUNDLED, Converter
from in_process import Cli, runner

from infer_os.runtime.chat import session_file
from infer_os.runtime.chat.prompt_file import check_prompt_file, load_prompt, save_prompt
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SessionError
from infer_os.runtime.generate import complete
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
TEXT = "It is a truth universally acknowledged, that a single man in possession of"
#: Loses nothing of a text, whatever a row is computed with.
SETTINGS = EngineSettings(context=128, threads=1)


@pytest.fixture(scope="module")
def model(converted: Converter) -> Path:
    return converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")


@pytest.fixture
def engine(model: Path) -> Iterator[LlamaEngine]:
    with LlamaEngine(model, SETTINGS) as made:
        yield made


@pytest.fixture
def infer_os(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Cli:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return runner(monkeypatch, capfdbinary)


def written(engine: LlamaEngine, prompt: list[int]) -> tuple[tuple[int, ...], int]:
    """A text, and how many tokens of the prompt were computed for it."""
    done = complete(engine, prompt, GREEDY, StopSettings(12))
    return done.tokens, done.timings.computed_tokens


@pytest.mark.parametrize("more", ["", " a good fortune, must be"])
def test_only_what_is_new_is_computed(
    engine: LlamaEngine, model: Path, tmp_path: Path, more: str
) -> None:
    first = engine.vocab.tokenize(TEXT)
    written(engine, first)
    assert save_prompt(tmp_path / "p", engine, first, tmp_path) == ""
    prompt = engine.vocab.tokenize(TEXT + more)
    with LlamaEngine(model, SETTINGS) as other:
        expected, n_computed = written(other, prompt)
        assert n_computed == len(prompt)
    with LlamaEngine(model, SETTINGS) as other:
        assert load_prompt(tmp_path / "p", other, prompt, tmp_path) == ""
        assert other.tokens == first[:-1]
        assert written(other, prompt) == (expected, len(prompt) - len(first) + 1)


def test_what_is_kept_is_the_prompt_alone(engine: LlamaEngine, tmp_path: Path) -> None:
    prompt = engine.vocab.tokenize(TEXT)
    written(engine, prompt)
    assert len(engine.tokens) > len(prompt)
    save_prompt(tmp_path / "p", engine, prompt, tmp_path)
    engine.forget()
    load_prompt(tmp_path / "p", engine, prompt, tmp_path)
    assert engine.tokens == prompt[:-1]
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o600
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_a_file_that_is_of_no_use(
    engine: LlamaEngine, converted: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, prompt = tmp_path / "p", engine.vocab.tokenize(TEXT)
    assert load_prompt(path, engine, prompt, tmp_path) == ""
    written(engine, prompt)
    save_prompt(path, engine, prompt, tmp_path)
    good = path.read_bytes()
    engine.forget()
    other = engine.vocab.tokenize("Elizabeth")
    assert "of a prompt that begins otherwise; the prompt is computed" in load_prompt(
        path, engine, other, tmp_path
    )
    for n in (40, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:n])
        assert "changed or truncated" in load_prompt(path, engine, prompt, tmp_path)
        engine.forget()
    path.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
    assert "changed or truncated" in load_prompt(path, engine, prompt, tmp_path)
    path.write_bytes(good)
    monkeypatch.setattr(session_file, "llama_version", lambda: "llama.cpp of another day")
    assert "this is llama.cpp of another day" in load_prompt(path, engine, prompt, tmp_path)
    monkeypatch.undo()
    with LlamaEngine(converted(), SETTINGS) as stranger:
        said = load_prompt(path, stranger, prompt[:3], tmp_path)
        assert "saved with another model" in said
        assert "\n" not in said
    assert written(engine, prompt)[1] == len(prompt)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Jane")
    with pytest.raises(SessionError, match="not a prompt cache of infer-os; choose another name"):
        check_prompt_file(path)
    path.write_bytes(b"INFEROS-SESSION\0" + bytes(100))
    with pytest.raises(SessionError, match="not a prompt cache of infer-os"):
        check_prompt_file(path)
    with pytest.raises(SessionError, match="there is no folder"):
        check_prompt_file(tmp_path / "nowhere" / "p")


def test_generate_keeps_a_prompt(model: Path, infer_os: Cli, tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    given = ["generate", model, "-p", TEXT, "--temperature", "0", "-n", "5", "--context", "128",
             "--threads", "1", "--json", "--prompt-cache", path]  # fmt: skip
    first, stamp = json.loads(infer_os(*given).out), path.stat().st_mtime_ns
    second = infer_os(*given)
    assert json.loads(second.out)["text"] == first["text"]
    assert "note" not in second.err
    assert path.stat().st_mtime_ns == stamp
    words = [*given[:3], TEXT + " a good", *given[4:-3]]
    told = infer_os(*words, "--prompt-cache", path)
    n_prompt = first["prompt_tokens"]
    assert f"prompt {3} of {n_prompt + 2} tokens" in told.err, told.err
    assert path.stat().st_mtime_ns > stamp
    refused = infer_os("chat", model, "--session", path, stdin=b"Hello\n")
    assert "not a session file" in refused.user_error


def test_generate_refuses_before_loading(infer_os: Cli, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear Jane")
    told = infer_os("generate", "no-model", "-p", "x", "--prompt-cache", tmp_path / "letter")
    assert "not a prompt cache" in told.user_error
    told = infer_os("generate", "m", "-p", "x", "--beams", "2", "--prompt-cache", tmp_path / "p")
    assert "--prompt-cache and --beams" in told.user_error
