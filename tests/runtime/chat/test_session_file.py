"""Sessions in files: continued as if never closed, and refused when anything differs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from random_models import random_model

import infer_os.runtime.chat.session_file as module
from infer_os.models.styles import STYLES
from infer_os.native.context import Context
from infer_os.native.errors import StateError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.chat.session import Session
from infer_os.runtime.chat.session_file import (
    check_name,
    is_session,
    load_session,
    model_hash,
    save_session,
)
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SessionError
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
SHORT = StopSettings(8)
SPEC = "f16:64,q8_0:1024"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("session"), "gpt2", 64)


def open_engine(path: Path, kv: str = "", n_ctx: int = 512) -> LlamaEngine:
    return LlamaEngine(path, EngineSettings(context=n_ctx, threads=1, kv=kv))


def say(session: Session, text: str) -> tuple[str, int]:
    """The reply, and how many tokens were computed for the prompt."""
    reply = "".join(session.reply(text, GREEDY, SHORT))
    return reply, session.last.timings.computed_tokens


@pytest.fixture
def saved(model: Path, tmp_path: Path) -> Path:
    """A session of two turns."""
    path = tmp_path / "talk.session"
    with open_engine(model) as engine:
        session = Session(engine, STYLES["dialogue"], "hello")
        say(session, "one two three")
        say(session, "four five")
        save_session(path, session, model, tmp_path)
    return path


@pytest.mark.parametrize("kv", ["", "q8_0", SPEC, "q4_0/f16"])
def test_continues_as_if_never_closed(model: Path, tmp_path: Path, kv: str) -> None:
    path = tmp_path / "talk.session"
    with open_engine(model, kv) as engine:
        session = Session(engine, STYLES["dialogue"], "hello")
        for text in ("one two three", "four five", "six " * 10):
            say(session, text)
        n_bytes = save_session(path, session, model, tmp_path)
        held, stage = list(engine.tokens), engine.kv.types
        expected = [say(session, "seven"), say(session, "eight")]
    assert path.stat().st_size == n_bytes
    with open_engine(model, kv) as engine:
        again = Session(engine, STYLES["plain"])
        load_session(path, again, model, tmp_path)
        assert (list(engine.tokens), engine.kv.types) == (held, stage)
        assert (again.n_turns, again.style.name) == (3, "dialogue")
        assert [say(again, "seven"), say(again, "eight")] == expected
        assert engine.take_notes() == ()


@pytest.mark.parametrize(
    ("before", "after"), [("f16", "q8_0"), ("q8_0", "f16"), (SPEC, "q4_0/q8_0")]
)
def test_other_types_are_reencoded(model: Path, tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "talk.session"
    with open_engine(model, before) as engine:
        session = Session(engine, STYLES["dialogue"])
        say(session, "one two three " * 8)
        save_session(path, session, model, tmp_path)
        held = list(engine.tokens)
        computed = say(session, "seven")[1]
        exact = engine.context.logits().copy()
        length = len(engine.tokens)
    with open_engine(model, after) as engine:
        again = Session(engine, STYLES["dialogue"])
        load_session(path, again, model, tmp_path)
        assert list(engine.tokens) == held
        assert engine.kv.types == after
        assert say(again, "seven")[1] == computed
        assert engine.take_notes() == ()
        assert len(engine.tokens) == length
        assert np.corrcoef(exact, engine.context.logits())[0, 1] > 0.99


def test_rows_that_do_not_fit_are_computed_again(
    model: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Context, _state: object) -> None:
        raise StateError("refused")

    with open_engine(model) as engine:
        session = Session(engine, STYLES["plain"])
        monkeypatch.setattr(Context, "import_rows", refuse)
        load_session(saved, session, model, tmp_path)
        (note,) = engine.take_notes()
        assert "refused" in note and "computed again" in note
        assert engine.tokens and session.n_turns == 2


def test_before_the_first_turn(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.session"
    with open_engine(model) as engine:
        save_session(path, Session(engine, STYLES["plain"], "hello"), model, tmp_path)
    with open_engine(model) as engine:
        session = Session(engine, STYLES["dialogue"])
        load_session(path, session, model, tmp_path)
        assert (list(engine.tokens), session.n_turns) == ([], 0)
        assert session.record().system == "hello"


def test_what_was_forgotten_is_not_kept(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.session"
    with open_engine(model) as engine:
        session = Session(engine, STYLES["dialogue"], "hello")
        say(session, "a secret that nobody should know " * 4)
        secret = session.tokens()
        session.reset()
        n_bytes = save_session(path, session, model, tmp_path)
        data = path.read_bytes()
        header = json.loads(data[24 : 24 + int.from_bytes(data[20:24], "little")])
        assert header["tokens"] == session.tokens()
        assert b"secret" not in path.read_bytes()
        assert header["turns"] == []
        say(session, "one")
        assert save_session(path, session, model, tmp_path) > n_bytes
        data = path.read_bytes()
        header = json.loads(data[24 : 24 + int.from_bytes(data[20:24], "little")])
        kept = session.tokens()
        assert header["tokens"] == kept[: len(header["tokens"])]
        assert len(header["tokens"]) < len(secret)
    with open_engine(model) as engine:
        again = Session(engine, STYLES["plain"])
        load_session(path, again, model, tmp_path)
        assert list(engine.tokens) == header["tokens"]
        assert again.n_turns == 1


# ---- refusals


def refused(model: Path, path: Path, folder: Path, complaint: str, n_ctx: int = 512) -> None:
    """The file is refused in one line, nothing reaches llama.cpp, and the engine still works."""
    with open_engine(model, n_ctx=n_ctx) as engine:
        session = Session(engine, STYLES["plain"])
        say(session, "one")
        with pytest.raises(SessionError, match=complaint) as caught:
            load_session(path, session, model, folder)
        assert "\n" not in str(caught.value)
        assert session.n_turns == 1
        assert say(session, "two")[0] is not None


def test_every_changed_part_is_refused(model: Path, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    header = int.from_bytes(data[20:24], "little")
    places = [24, 24 + header // 2, 24 + header - 1, 24 + header, 24 + header + 31,
              24 + header + 32, 24 + header + 40, len(data) // 2, len(data) - 33,
              len(data) - 1]  # fmt: skip
    for at in places:
        saved.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused(model, saved, tmp_path, "changed or truncated since it was saved")


def test_every_cut_is_refused(model: Path, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for length in [*range(24, len(data), max(1, len(data) // 12)), len(data) - 1]:
        saved.write_bytes(data[:length])
        refused(model, saved, tmp_path, "changed or truncated")
    saved.write_bytes(data + b"\0")
    refused(model, saved, tmp_path, "changed or truncated")


def test_batches_cannot_be_exchanged(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import infer_os.runtime.engine as engine_module

    monkeypatch.setattr(engine_module, "_SAVED_BATCH", 1)  # a token at a time
    path = tmp_path / "talk.session"
    with open_engine(model) as engine:
        session = Session(engine, STYLES["plain"])
        say(session, "one two")
        save_session(path, session, model, tmp_path)
        n_tokens = len(engine.tokens)
    data = path.read_bytes()
    start = 24 + int.from_bytes(data[20:24], "little") + 32
    size = (len(data) - start) // n_tokens
    assert size * n_tokens == len(data) - start
    swapped = data[start + size : start + 2 * size] + data[start : start + size]
    path.write_bytes(data[:start] + swapped + data[start + 2 * size :])
    refused(model, path, tmp_path, "changed")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"INFEROS-SESSION", b"x" * 100])
def test_other_files_are_refused(model: Path, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    refused(model, path, tmp_path, "not a session file")
    with pytest.raises(SessionError, match=r"not a session file.*choose another name"):
        check_name(path)
    assert path.read_bytes() == data


def test_other_format_version(model: Path, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:16] + b"\1\0\0\0" + data[20:])
    refused(model, saved, tmp_path, "session format 1; this infer-os reads format 2")


def test_missing_file(model: Path, tmp_path: Path) -> None:
    refused(model, tmp_path / "none", tmp_path, "cannot be read: No such file")


def test_a_huge_header_is_not_read(model: Path, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:20] + b"\xff\xff\xff\xff" + data[24:])
    refused(model, saved, tmp_path, "changed")


def test_another_key(model: Path, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    refused(model, saved, other, r"saved with another session\.key")
    assert stat.S_IMODE((other / "session.key").stat().st_mode) == 0o600
    assert len((other / "session.key").read_bytes()) == 32


def test_a_key_that_others_can_read(model: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "session.key").chmod(0o644)
    refused(model, saved, tmp_path, "others can read it")
    (tmp_path / "session.key").chmod(0o600)
    (tmp_path / "session.key").write_bytes(b"short")
    refused(model, saved, tmp_path, "not a key of 32 bytes")


def test_another_model(model: Path, saved: Path, tmp_path: Path) -> None:
    # the same sizes and the same header: only the weights differ
    other = random_model(tmp_path / "other", "gpt2", 64, seed=1)
    assert other.stat().st_size == model.stat().st_size
    refused(other, saved, tmp_path, r"saved with another model \(model.gguf\)")
    assert model_hash(read_gguf_header(model)) == model_hash(read_gguf_header(model))


def test_every_tensor_counts(model: Path, tmp_path: Path) -> None:
    header = read_gguf_header(model)
    copy = tmp_path / "copy.gguf"
    for tensor in header.tensors:
        data = bytearray(model.read_bytes())
        data[header.data_offset + tensor.offset + tensor.n_bytes // 2] ^= 1
        copy.write_bytes(data)
        assert model_hash(read_gguf_header(copy)) != model_hash(header)


def test_another_llama(
    model: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "llama_version", lambda: "llama-cpp-python 9, ggml 9")
    refused(model, saved, tmp_path, "saved by llama-cpp-python 0.*this is llama-cpp-python 9")


def test_a_smaller_context(model: Path, saved: Path, tmp_path: Path) -> None:
    refused(model, saved, tmp_path, "the context has 24; raise --context", n_ctx=24)


# ---- the file itself


def test_only_its_owner_reads_it(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert [p.name for p in saved.parent.iterdir() if "part" in p.name] == []


def test_a_failed_save_keeps_the_old_file(
    model: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with open_engine(model) as engine:
        session = Session(engine, STYLES["plain"])
        say(session, "one")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(SessionError, match="cannot be written: No space left"):
            save_session(saved, session, model, tmp_path)
    assert saved.read_bytes() == before
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize("name", ["n" * 300, "zero\0byte", "talk.session/x"])
def test_a_name_that_no_file_can_have(model: Path, saved: Path, name: str) -> None:
    path = saved.parent / name
    with pytest.raises(SessionError, match="cannot be a session file"):
        check_name(path)
    session = Session(FakeEngine(saying("fine")), STYLES["plain"])
    for act in (save_session, load_session):
        with pytest.raises(SessionError, match="cannot be a session file"):
            act(path, session, model, saved.parent)


def test_the_longest_name(model: Path, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    save_session(path, Session(FakeEngine(saying("fine")), STYLES["plain"]), model, tmp_path)
    assert is_session(path)


def test_a_model_that_is_gone(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model.read_bytes())
    header = read_gguf_header(copy)
    copy.unlink()
    with pytest.raises(SessionError, match=r"copy\.gguf: cannot be read: No such file"):
        model_hash(header)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="there is no folder"):
        check_name(tmp_path / "none" / "x.session")


def test_header_has_no_secrets(saved: Path) -> None:
    data = saved.read_bytes()
    header = json.loads(data[24 : 24 + int.from_bytes(data[20:24], "little")])
    assert set(header) == {
        "model", "model_name", "llama", "type_k", "type_v", "rotates", "batch", "tokens", "style",
        "system", "turns",
    }  # fmt: skip
    assert (saved.parent / "session.key").read_bytes() not in data


def test_works_with_any_engine(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "fake.session"
    session = Session(FakeEngine(saying("fine")), STYLES["plain"])
    say(session, "hi")
    save_session(path, session, model, tmp_path)
    again = Session(FakeEngine(saying("fine")), STYLES["plain"])
    load_session(path, again, model, tmp_path)
    assert again.record() == session.record()
    assert list(again.engine.tokens) == list(session.engine.tokens)
