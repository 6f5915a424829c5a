"""The engine keeps what two prompts share, and its logits are those of a fresh context."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import PARALLEL, Converter, copy_checkpoint
from numpy.typing import NDArray

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.styles import STYLES
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import DecodeError, Interrupted
from infer_os.native.interrupt import interruptible
from infer_os.native.library import load_library
from infer_os.native.model import LlamaModel
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import PromptError
from infer_os.runtime.interface import shared_prefix
from infer_os.runtime.settings import EngineSettings

TOKENS = [int(t) for t in np.random.default_rng(1).integers(1, 290, 60)]


def fresh_logits(gguf: Path, tokens: list[int], n_ctx: int = 128) -> NDArray[np.float32]:
    """The last row after ``tokens`` in an engine that has seen nothing else."""
    with LlamaEngine(gguf, EngineSettings(context=n_ctx, threads=1)) as engine:
        engine.feed(tokens)
        return engine.context.logits().copy()


def agree(got: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    # a batch of another size sums in another order, and the cache is F16
    return bool(np.abs(got - expected).max() < 0.02)


def test_shared_prefix() -> None:
    assert shared_prefix([], [1]) == 0
    assert shared_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared_prefix([1, 2], [1, 2, 3]) == 2
    assert shared_prefix([1, 2, 3], [1, 2]) == 2
    assert shared_prefix([2, 1], [1, 2]) == 0


def test_feed_computes_only_what_is_new(engine: LlamaEngine) -> None:
    assert engine.feed(TOKENS[:10]) == 10
    assert engine.feed(TOKENS[:15]) == 5
    assert engine.feed([*TOKENS[:8], 7, 8, 9]) == 3
    assert engine.feed(TOKENS[20:24]) == 4
    assert engine.tokens == TOKENS[20:24]


def test_the_last_token_is_computed_again(engine: LlamaEngine) -> None:
    engine.feed(TOKENS[:10])
    assert engine.feed(TOKENS[:10]) == 1
    assert engine.feed(TOKENS[:4]) == 1
    assert engine.tokens == TOKENS[:4]


def test_what_is_kept_does_not_change_the_logits(engine: LlamaEngine, converted: Converter) -> None:
    engine.feed(TOKENS[:30])
    engine.feed([*TOKENS[:12], *TOKENS[40:50]])
    expected = fresh_logits(converted(), [*TOKENS[:12], *TOKENS[40:50]])
    assert agree(engine.context.logits(), expected)
    assert not agree(expected, fresh_logits(converted(), [*TOKENS[:12], *TOKENS[41:51]]))


def test_steps_equal_one_feed(engine: LlamaEngine, converted: Converter) -> None:
    engine.feed(TOKENS[:3])
    for token in TOKENS[3:20]:
        engine.step(token)
    assert engine.tokens == TOKENS[:20]
    assert agree(engine.context.logits(), fresh_logits(converted(), TOKENS[:20]))


def test_a_prompt_longer_than_a_batch(converted: Converter) -> None:
    tokens = (TOKENS * 12)[:700]
    with LlamaEngine(converted(), EngineSettings(context=800, threads=1)) as engine:
        assert engine.context.n_batch < 700
        assert engine.feed(tokens) == 700
        whole = engine.context.logits().copy()
        engine.feed(tokens[:699])
        engine.step(tokens[699])
        assert agree(engine.context.logits(), whole)


def test_an_empty_prompt_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(PromptError, match="empty"):
        engine.feed([])


def test_a_prompt_larger_than_the_context_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(PromptError, match=r"129 tokens.*holds 128.*--context"):
        engine.feed((TOKENS * 3)[:129])
    assert engine.feed((TOKENS * 3)[:128]) == 128


def test_an_interrupt_stops_a_decode_and_the_engine_recovers(
    engine: LlamaEngine, converted: Converter
) -> None:
    engine.feed(TOKENS[:10])
    with interruptible():
        load_library().inferos_interrupt_set(1)
        with pytest.raises(Interrupted):
            engine.step(TOKENS[10])
    assert engine.tokens == TOKENS[:10]
    engine.step(TOKENS[10])
    assert agree(engine.context.logits(), fresh_logits(converted(), TOKENS[:11]))
    with interruptible():
        load_library().inferos_interrupt_set(1)
        with pytest.raises(Interrupted):
            engine.feed(TOKENS[:40])
    assert engine.feed(TOKENS[:40]) >= 29
    assert agree(engine.context.logits(), fresh_logits(converted(), TOKENS[:40]))


def test_an_interrupt_inside_the_log_callback_prints_nothing(converted: Converter) -> None:
    """llama.cpp logs the abort through Python, where KeyboardInterrupt then has nowhere to go."""
    script = (
        "import os, signal, threading\n"
        "from pathlib import Path\n"
        "from infer_os.runtime.engine import LlamaEngine\n"
        "from infer_os.runtime.generate import complete\n"
        "from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings\n"
        f"engine = LlamaEngine(Path({str(converted())!r}), EngineSettings(100000, threads=1))\n"
        "for i in range(6):\n"
        "    timer = threading.Timer(0.1 + i / 50, os.kill, (os.getpid(), signal.SIGINT))\n"
        "    timer.start()\n"
        "    done = complete(engine, [1, 2 + i], SamplingSettings(), StopSettings(10**6))\n"
        "    print(done.finish_reason.value)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("interrupt\n" * 6, "")


def test_the_interrupt_flag_is_clear_when_decoding_begins(engine: LlamaEngine) -> None:
    load_library().inferos_interrupt_set(1)
    with interruptible():
        engine.feed(TOKENS[:5])
    engine.feed(TOKENS[:6])


def test_pythons_own_handler_runs_and_comes_back() -> None:
    script = (
        "import os, signal\n"
        "from infer_os.native.interrupt import interruptible\n"
        "from infer_os.native.library import load_library\n"
        "flag = load_library().inferos_interrupt_requested\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        with interruptible():\n"
        "            assert not flag(None)\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                for _ in range(10**7): pass\n"
        "            finally:\n"
        "                assert flag(None)\n"
        "    except KeyboardInterrupt:\n"
        "        print('caught')\n"
        "assert not flag(None)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(10**7): pass\n"
        "except KeyboardInterrupt:\n"
        "    print('plain')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("caught\ncaught\nplain\n", "")


def test_what_the_engine_says_of_itself(engine: LlamaEngine, converted: Converter) -> None:
    info = engine.info
    assert (info.graph, info.source, info.n_ctx) == ("gptneox", "GPTNeoXForCausalLM", 128)
    assert info.path == converted()
    assert info.n_threads == 1
    assert info.notes == ()
    assert info.plan is not None


def test_a_context_of_a_size_that_llama_cpp_rounds(converted: Converter) -> None:
    with LlamaEngine(converted(), EngineSettings(context=100, threads=1)) as engine:
        assert engine.n_ctx == 100
        with pytest.raises(PromptError):
            engine.feed((TOKENS * 2)[:101])


@pytest.mark.parametrize("load", ["mmap", "fast"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_both_ways_of_loading_compute_the_same(converted: Converter, load: str, kind: str) -> None:
    settings = EngineSettings(context=128, threads=1, load=load)
    with LlamaEngine(converted(kind=kind), settings) as engine:
        engine.feed(TOKENS)
        got = engine.context.logits().copy()
    assert np.abs(got - fresh_logits(converted(kind=kind), TOKENS)).max() < 0.3


def test_loading_reports_its_progress(converted: Converter) -> None:
    shares: list[float] = []
    settings = EngineSettings(context=64, threads=1)
    LlamaEngine(converted(), settings, progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_closing_twice_is_harmless(converted: Converter) -> None:
    engine = LlamaEngine(converted(), EngineSettings(context=64, threads=1))
    engine.close()
    engine.close()


def test_engines_do_not_leak(converted: Converter) -> None:
    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def load() -> None:
        with LlamaEngine(converted(), EngineSettings(context=4096, threads=1)) as engine:
            engine.feed(TOKENS)

    for _ in range(5):
        load()
    before = rss()
    for _ in range(40):
        load()
    # 40 contexts of 2 MB each, and as many models
    assert rss() - before < 25 << 20


# ---- the context below it


def test_batches_of_no_or_too_many_tokens(converted: Converter) -> None:
    params = ContextParams(n_ctx=64, n_threads=1, n_batch=32)
    with LlamaModel(converted()) as model, Context(model, params) as context:
        for tokens in ([], list(range(33))):
            with pytest.raises(DecodeError, match="expected 1 to 32"):
                context.decode(tokens, 0)


@pytest.mark.parametrize("token", [-1, 300, 1 << 30])
def test_a_token_that_the_vocabulary_lacks(converted: Converter, token: int) -> None:
    with LlamaModel(converted()) as model, Context(model, ContextParams(64, 1)) as context:
        with pytest.raises(DecodeError, match="invalid batch"):
            context.decode([token], 0)
        context.decode([1], 0)


def test_logits_of_a_row_that_was_not_computed(converted: Converter) -> None:
    with LlamaModel(converted()) as model, Context(model, ContextParams(64, 1)) as context:
        context.decode([1, 2, 3], 0, outputs=1)
        assert context.logits(-1).shape == (300,)
        with pytest.raises(DecodeError, match="row 0"):
            context.logits(0)


def test_trim_takes_tokens_back(converted: Converter) -> None:
    with LlamaModel(converted()) as model, Context(model, ContextParams(64, 1)) as context:
        context.decode(TOKENS[:8], 0)
        expected = context.logits().copy()
        context.decode(TOKENS[30:40], 8)
        context.trim(7)
        context.decode(TOKENS[7:8], 7)
        assert agree(context.logits(), expected)


def test_only_the_asked_rows_of_logits_are_reserved(converted: Converter) -> None:
    """n_outputs_max counts: a batch of 512 rows of logits would need 614 KB more."""
    sizes = {}
    for n in (1, 512):
        params = ContextParams(512, 1, n_outputs_max=n)
        with LlamaModel(converted()) as model, Context(model, params) as context:
            context.decode((TOKENS * 9)[:512], 0, outputs=n)
            sizes[n] = context.logits().copy()
    assert agree(sizes[1], sizes[512])


def test_an_engine_tells_the_style_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STYLES, "dialogpt", STYLES["plain"])
    folder = copy_checkpoint(PARALLEL, tmp_path / "DialoGPT-large")
    convert(ConvertSettings(folder, tmp_path / "m.gguf", "q8_0"))
    with LlamaEngine(tmp_path / "m.gguf", EngineSettings(context=32, threads=1)) as loaded:
        assert loaded.info.style == "dialogpt"


def test_an_engine_shows_that_its_file_is_in_use(converted: Converter) -> None:
    path = converted()
    with path.open("rb") as file:
        with LlamaEngine(path, EngineSettings(context=32, threads=1)):
            # others may use it as well, but nobody alone
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
