"""The Python API: what it returns, who waits for whom, what a close ends, what is logged."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLED, Converter

import infer_os
from infer_os.api import Model, load
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.library import load_library
from infer_os.runtime.batch import batch_engine
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.parallel import plan_batch
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import (
    ModelBusy,
    ModelClosed,
    PromptError,
    RuntimeFailure,
    SettingsError,
)
from infer_os.runtime.exclusive import Turns
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.generate import FinishReason, complete
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.scoring.embedder import Embedder
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
GREEDY = SamplingSettings(temperature=0)
SHORT = StopSettings(12)
SMALL = EngineSettings(context=128, threads=1)
PROMPTS = ["It is a truth", "She was", "They had been", "He", "Elizabeth looked at him", "I am"]


@pytest.fixture
def file(converted: Converter) -> Path:
    return converted(BUNDLED_MODEL, "q8_0")


@pytest.fixture
def model(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    with load(file, settings=SMALL) as loaded:
        yield loaded


def expected(file: Path, prompts: Sequence[str]) -> list[str]:
    with LlamaEngine(file, SMALL) as engine:
        return [complete(engine, engine.vocab.tokenize(p), GREEDY, SHORT).text for p in prompts]


# ---- the package


def no_batch(_: BatchSettings) -> BatchEngine:
    """For tests of one sequence."""
    raise AssertionError("a batch was opened")


def test_importing_it_imports_nothing_heavy() -> None:
    script = (
        "import sys, infer_os\n"
        "infer_os.EngineSettings(), infer_os.SamplingSettings(), infer_os.StopSettings()\n"
        "heavy = {'numpy', 'llama_cpp', 'rich', 'typer', 'huggingface_hub', 'gguf', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "infer_os.load\n"
        "print(sorted({'rich', 'typer', 'prompt_toolkit', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n[]\n"


def test_every_name_is_there() -> None:
    assert set(infer_os.__all__) <= set(dir(infer_os))
    for name in infer_os.__all__:
        assert getattr(infer_os, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        infer_os.lode  # noqa: B018


# ---- text


def test_generate_is_the_engines_text(file: Path, model: Model) -> None:
    done = model.generate(PROMPTS[0], sampling=GREEDY, stops=SHORT)
    assert [done.text] == expected(file, PROMPTS[:1])
    assert (done.finish_reason, len(done.tokens)) == (FinishReason.LENGTH, 12)
    assert model.last == done
    with model.stream(PROMPTS[0], sampling=GREEDY, stops=SHORT) as chunks:
        pieces = list(chunks)
    assert "".join(pieces) == done.text
    assert len(pieces) > 3
    assert model.path == file
    assert model.n_ctx == 128


def test_a_closed_stream_has_drawn_no_more(model: Model) -> None:
    stream = model.stream(PROMPTS[0], sampling=GREEDY, stops=StopSettings(100))
    text = next(stream) + next(stream)
    stream.close()
    assert list(stream) == []
    assert model.last is not None
    assert model.last.text == text
    assert len(model.last.tokens) < 8
    assert model.last.finish_reason is FinishReason.INTERRUPT


def test_a_chat(model: Model, tmp_path: Path) -> None:
    chat = model.chat(style="dialogue", sampling=GREEDY, stops=SHORT)
    first = chat.say("How are you?")
    assert first
    assert first == first.lstrip()
    assert "".join(chat.stream("And your sister?"))
    assert (chat.n_turns, chat.style) == (2, "dialogue")
    chat.save(tmp_path / "talk.session")
    assert chat.undo() == "And your sister?"
    chat.reset()
    assert (chat.n_turns, chat.undo()) == (0, None)
    other = model.chat(style="plain")
    other.load(tmp_path / "talk.session")
    assert (other.n_turns, other.style) == (2, "dialogue")
    # the same conversation from its beginning
    chat.reset()
    assert chat.say("How are you?") == first


# ---- batches


def test_a_batch_is_the_batch_engines_on_the_weights_that_are_loaded(
    file: Path, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = model.chat(sampling=GREEDY, stops=SHORT)
    reply = chat.say("How are you?")
    monkeypatch.setattr(batch_engine, "load_model", lambda *a, **k: pytest.fail("loaded twice"))
    records = [*PROMPTS[:3], {"id": "bad", "prompt": ""}, {"id": "x", "prompt": "He", "n": 2}]
    settings = BatchSettings(parallel=2)
    results = model.batch(records, sampling=GREEDY, stops=SHORT, settings=settings, ordered=True)
    got = [next(results)]
    # the first context is gone meanwhile
    assert model._engine.kv.n_bytes == 0
    got += results
    assert [r.id for r in got] == [1, 2, 3, "bad", "x", "x"]
    assert got[3].error == "record 4: the prompt is empty"
    assert [r.text for r in got[:3]] == expected(file, PROMPTS[:3])
    # what the chat had in the freed cache is computed again
    chat.save(tmp_path / "talk.session")
    assert chat.undo() == "How are you?"
    assert chat.say("How are you?") == reply


@pytest.mark.parametrize("mode", ["mmap", "fast"])
def test_a_batch_keeps_within_the_memory(file: Path, mode: str) -> None:
    settings = EngineSettings(context=512, threads=1, load=mode)
    header = read_gguf_header(file)
    with load(file, settings=settings) as model:  # plans count the pages of files that are mapped
        list(model.batch(["He"], stops=SHORT, settings=BatchSettings(parallel=4)))
        plan, _notes = plan_batch(header, settings, 4)
    for memory, fits in ((plan.total, True), (plan.total - 1, False)):
        limited = EngineSettings(context=512, threads=1, load=mode, memory=memory)
        with load(file, settings=limited) as model:
            answers = model.batch(["He"], stops=SHORT, settings=BatchSettings(parallel=4))
            if fits:
                assert [r.id for r in answers] == [1]
            else:
                with pytest.raises(MemoryShortage):
                    next(answers)


def test_a_closed_batch_frees_its_context_before_the_weights(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for kind in (BatchEngine, LlamaEngine):
        whole = kind.close
        monkeypatch.setattr(
            kind, "close", lambda self, k=kind, w=whole: (closed.append(k.__name__), w(self))
        )
    model = load(file, settings=SMALL)
    results = model.batch(PROMPTS, stops=SHORT, settings=BatchSettings(parallel=2))
    next(results)
    model.close()
    assert closed == ["BatchEngine", "LlamaEngine"]
    assert list(results) == []


# ---- scores


def test_scores_are_the_scorers_on_the_weights_that_are_loaded(
    file: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_engine, "load_model", lambda *a, **k: pytest.fail("loaded twice"))
    texts = [
        ("It is", " a truth"), "It is a truth", {"id": "x", "continuation": " a"}, ("It", 7),
        ("It is", " a truth"),
    ]  # fmt: skip
    got = list(model.score(texts))
    assert [r.id for r in got] == [1, 2, "x", 4, 5]
    assert got[0].logprob == got[4].logprob and got[0].tokens == got[4].tokens
    assert [t.text for t in got[0].tokens or ()] == [" a", " truth"]
    assert got[3].error == 'record 4: "continuation" is a text, not a whole number'
    sums = model.score(texts[:2], settings=ScoringSettings(2, totals=True), ordered=False)
    assert {r.id: r.logprob for r in sums} == {r.id: r.logprob for r in got[:2]}
    # the probability of a text is that of what is drawn
    drawn = model.generate("It is", sampling=GREEDY, stops=SHORT)
    [again] = model.score([("It is", drawn.text)])
    assert again.is_greedy and drawn.tokens[: again.n_tokens] == tuple(
        t.token for t in again.tokens or ()
    )


def test_tokens_are_texts_again(model: Model) -> None:
    tokens = model.tokenize("It is a truth é")
    assert model.detokenize(tokens) == "It is a truth é"
    assert model.detokenize(tokens[:2]) == "It is"


def test_scoring_refuses_what_it_cannot_do(model: Model) -> None:
    with pytest.raises(PromptError, match="this is only one"):
        model.score("It is")
    with pytest.raises(SettingsError, match="expected ScoringSettings"):
        model.score(["It is"], settings=4)  # type: ignore[arg-type]
    with pytest.raises(RuntimeFailure, match="without a way to score"):
        Model(FakeEngine(saying("abc")), no_batch).score(["It is"])


# ---- vectors


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_the_embedders_on_the_weights_that_are_loaded(
    file: Path, model: Model, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["It is a truth", {"id": "x", "text": "universally"}, "", {"text": 7}, "It is a truth"]
    with Embedder(file, SMALL, pooling) as embedder:
        wanted = [embedder.embed(model.tokenize(text)) for text in ("It is a truth", "universally")]
    monkeypatch.setattr(batch_engine, "load_model", lambda *a, **k: pytest.fail("loaded twice"))
    before = model.generate("It is", sampling=GREEDY, stops=SHORT)
    got = list(model.embed(texts, pooling=pooling))
    assert [r.id for r in got] == [1, "x", 3, 4, 5]
    for result, vector in zip((got[0], got[1], got[4]), (*wanted, wanted[0]), strict=True):
        assert result.embedding is not None and np.array_equal(result.embedding, vector)
        assert abs(float(np.linalg.norm(result.embedding)) - 1) < 1e-6
    assert [r.error for r in got[2:4]] == [
        "record 3: the text is empty", 'record 4: "text" is a text, not a whole number',
    ]  # fmt: skip
    assert model.generate("It is", sampling=GREEDY, stops=SHORT).text == before.text


def test_embedding_refuses_what_it_cannot_do(model: Model) -> None:
    with pytest.raises(PromptError, match="this is only one"):
        model.embed("It is")
    with pytest.raises(SettingsError, match="max: expected mean or last"):
        model.embed(["It is"], pooling="max")
    with pytest.raises(RuntimeFailure, match="without a way to embed"):
        Model(FakeEngine(saying("abc")), no_batch).embed(["It is"])


# ---- threads


def test_threads_get_the_texts_of_one(file: Path, model: Model) -> None:
    texts = ["" for _ in PROMPTS]

    def write(number: int) -> None:
        texts[number] = model.generate(PROMPTS[number], sampling=GREEDY, stops=SHORT).text

    run_all([lambda n=n: write(n) for n in range(len(PROMPTS))])
    assert texts == expected(file, PROMPTS)


def run_all(tasks: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_another_thread_waits_for_the_end_of_a_stream() -> None:
    model = Model(FakeEngine(saying("abc")), no_batch)
    events: list[str] = []
    stream = model.stream("x")
    events.append(next(stream))
    waiting = threading.Thread(
        target=lambda: events.append(model.generate("y").text), daemon=True
    )  # fmt: skip
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    events.extend(stream)
    events.append("end")
    waiting.join(10)
    assert events[:3] == ["a", "b", "c"]
    assert sorted(events[3:]) == ["abc", "end"]


def test_a_thread_that_would_wait_for_itself_is_told() -> None:
    model = Model(FakeEngine(saying("abc")), no_batch)
    chat = model.chat()
    stream = model.stream("x")
    next(stream)
    for call in (lambda: model.generate("y"), lambda: chat.say("y"), chat.reset,
                 lambda: next(model.batch(["y"])), lambda: model.tokenize("y")):  # fmt: skip
        with pytest.raises(ModelBusy, match="this thread has a stream of the same model under way"):
            call()
    assert "".join(stream) == "bc"
    assert model.generate("y").text == "abc"


@pytest.mark.parametrize(("what", "said"), [("embed", "an embed"), ("batch", "a batch")])
def test_who_holds_a_model_has_its_article(what: str, said: str) -> None:
    turns = Turns()
    found = pytest.raises(ModelBusy, match=f"this thread has {said} of ")
    with turns.hold(what), found, turns.hold("generate"):
        pass


def test_a_dropped_stream_lets_others_in() -> None:
    model = Model(FakeEngine(saying("abc")), no_batch)
    for chunk in model.stream("x"):
        assert chunk == "a"
        break
    assert model.generate("y").text == "abc"


def test_closing_ends_what_another_thread_computes() -> None:
    began, closed, steps = threading.Event(), threading.Event(), []

    def endless(tokens: Sequence[int]) -> int:
        assert not closed.is_set(), "computed on a closed engine"
        steps.append(len(tokens))
        began.set()
        time.sleep(0.001)
        return ord("a")

    engine = FakeEngine(endless, 1 << 20)
    model = Model(engine, no_batch, closed.set)
    finished: list[FinishReason] = []

    def generate() -> None:
        done = model.generate("x", stops=StopSettings(1 << 20))
        finished.append(done.finish_reason)

    def close() -> None:
        assert began.wait(10)
        model.close()
        assert closed.is_set()
        model.close()

    run_all([generate, close])
    assert finished == [FinishReason.INTERRUPT]
    assert len(steps) < 10_000
    with pytest.raises(ModelClosed, match="generation: the model is closed"):
        model.generate("x")


def test_closing_ends_a_stream_that_nobody_reads_and_those_who_wait() -> None:
    model = Model(FakeEngine(saying("abc")), no_batch)
    stream = model.stream("x")
    next(stream)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            model.generate("y")
        except ModelClosed as error:
            errors.append(error)

    def close() -> None:
        time.sleep(0.05)
        model.close()

    run_all([wait, close])
    assert len(errors) == 1
    assert list(stream) == []


# ---- Ctrl-C


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python's handler, which a shell in the background takes away."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(tokens: Sequence[int]) -> int:
    if len(tokens) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return ord("a")


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_is_a_keyboard_interrupt_in_the_main_thread() -> None:
    model = Model(FakeEngine(interrupting), no_batch)
    with pytest.raises(KeyboardInterrupt):
        model.generate("x")
    assert model.last is not None
    assert model.last.finish_reason is FinishReason.INTERRUPT
    chat = model.chat(style="plain")
    with pytest.raises(KeyboardInterrupt):
        chat.say("x")
    assert chat.n_turns == 1


def test_another_thread_neither_installs_nor_needs_a_handler(file: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    texts: list[str] = []

    def work() -> None:
        with load(file, settings=SMALL) as model:
            texts.append(model.generate(PROMPTS[0], sampling=GREEDY, stops=SHORT).text)
            batch = model.batch(
                PROMPTS[:1], sampling=GREEDY, stops=SHORT, settings=BatchSettings(parallel=1)
            )
            texts.extend(result.text for result in batch)

    run_all([work])
    assert texts == expected(file, PROMPTS[:1]) * 2
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("sigint")
def test_overlapping_streams_leave_python_its_handler() -> None:
    library = load_library()
    hook = sys.unraisablehook
    one, other = (
        Model(FakeEngine(saying("abc")), no_batch),
        Model(FakeEngine(saying("abc")), no_batch),
    )
    first, second = one.stream("x"), other.stream("y")
    next(first), next(second)
    first.close()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert library.inferos_interrupt_requested(None) & 1
    second.close()
    assert not library.inferos_interrupt_requested(None) & 1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not library.inferos_interrupt_requested(None) & 1
    assert sys.unraisablehook is hook


# ---- logs


def test_notes_are_warnings_as_long_as_the_model_is_open(
    file: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    heard: list[tuple[int, str]] = []
    longer = EngineSettings(context=4096, threads=1)
    with caplog.at_level(logging.INFO, "infer_os"):
        with load(
            BUNDLED_MODEL, settings=longer, type="q8_0",
            on_log=lambda record: heard.append((record.levelno, record.getMessage())),
        ) as model:  # fmt: skip
            assert len(model.notes) == 1
        logging.getLogger("infer_os").warning("afterwards")
    assert (logging.WARNING, model.notes[0]) in heard
    assert any(level == logging.INFO and "converting to q8_0" in text for level, text in heard)
    assert (logging.WARNING, "afterwards") not in heard
    assert {record.name for record in caplog.records} == {"infer_os", "infer_os.llama"}


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    told: list[tuple[str, int, int]] = []
    settings = EngineSettings(context=128, threads=1, prefetch=True)
    load(
        BUNDLED_MODEL, settings=settings, type="q8_0",
        on_progress=lambda what, done, total: told.append((what, done, total)),
    ).close()  # fmt: skip
    assert {what for what, _, _ in told} == {"austen-6m to q8_0", "prefetching"}
    assert told[-1][1] == told[-1][2] > 1_000_000
