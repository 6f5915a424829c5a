"""Models some of whose layers see only a window: contexts, caches, batches, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REFERENCES, Converter

from infer_os.native.backend import start_kernels
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Record
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import complete
from infer_os.runtime.plan.shapes import header_shape
from infer_os.runtime.plan.use import exact_window
from infer_os.runtime.prepare import choose_context
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

NEO = next(folder for folder in REFERENCES if folder.name == "gpt-neo")
GREEDY = SamplingSettings(temperature=0)

needs_kernels = pytest.mark.skipif(
    not start_kernels().in_use, reason=f"our kernels do not run: {start_kernels().reason}"
)


@needs_kernels
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_a_batch_is_one_after_the_other(converted: Converter, kv: str) -> None:
    """Texts that begin alike, so that rows are copied, and go on past the window."""
    path = converted(NEO, "q8_0")
    settings = EngineSettings(context=128, threads=2, kv=kv)
    prompts = ["the quick brown fox " * 2 + "jumps over" * (i % 3) + "x" * i for i in range(9)]
    items = [Record(i, i + 1, GREEDY, StopSettings(40), text) for i, text in enumerate(prompts)]
    with BatchEngine(path, settings, BatchSettings(4)) as engine:
        got = {result.id: result.tokens for result in engine.run(items)}
    with LlamaEngine(path, settings) as engine:
        for record in items:
            tokens = engine.vocab.tokenize(record.prompt or "")
            alone = complete(engine, tokens, GREEDY, record.stops)
            assert got[record.id] == alone.tokens
            assert len(tokens) + len(alone.tokens) > 40


def test_a_context_beyond_the_window_needs_our_kernels(converted: Converter) -> None:
    header = read_gguf_header(converted(NEO))
    assert choose_context(header, 24, native=False) == (24, ())
    n_ctx, notes = choose_context(header, 0, native=False)
    assert n_ctx == 24
    assert "see windows of 24 tokens, which only infer-os' kernels compute" in notes[0]
    with pytest.raises(SettingsError, match=r"--context 25: .*or leave out --no-native"):
        choose_context(header, 25, native=False)
    shape = header_shape(header)
    assert (shape.n_ctx_train, shape.window, exact_window(shape, native=False)) == (128, 24, 24)
    if start_kernels().in_use:
        assert exact_window(shape, native=True) == 0
        assert choose_context(header, 0) == choose_context(header, 128) == (128, ())
        with pytest.raises(SettingsError, match="128 learned positions"):
            choose_context(header, 129)


@needs_kernels
def test_caches_that_have_windows(converted: Converter) -> None:
    path = converted(NEO)
    with pytest.raises(SettingsError, match=r"--kv q5_1: .*caches of f16, q4_0, q8_0"):
        LlamaEngine(path, EngineSettings(context=128, threads=1, kv="q5_1"))
    # what a budget chooses is among them
    with LlamaEngine(path, EngineSettings(context=128, threads=1, kv_budget=60_000)) as engine:
        assert engine.kv.types in ("q8_0", "q8_0/q4_0", "q4_0")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infer_os.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@needs_kernels
def test_what_the_commands_say(converted: Converter, tmp_path: Path) -> None:
    path = converted(NEO)
    done = run("generate", path, "-p", "abc", "-n", 40, "--context", 100, "--no-native")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--context 100: some layers of" in one_line(done.stderr)
    done = run("generate", path, "-p", "abc", "-n", 2, "--no-native")
    assert done.returncode == 0 and "context 24: some layers of" in one_line(done.stderr)
    done = run("generate", path, "-p", "abc", "-n", 60)
    assert done.returncode == 0 and "window" not in done.stderr
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    done = run("eval", path, "--text", text, "--window", 64, "--json")
    assert done.returncode == 0, done.stderr
