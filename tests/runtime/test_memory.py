"""Before a file is loaded: its context and whether it fits; after that, what is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import Converter, small_memory

from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.residency import peak_rss_bytes
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.memory import MemoryUse, parse_smaps
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.prepare import choose_context, plan_file
from infer_os.runtime.settings import EngineSettings


def header(graph: str = "gptneox", **metadata: Any) -> GgufHeader:
    full = {"general.architecture": graph, **{f"{graph}.{k}": v for k, v in metadata.items()}}
    full = {key.replace("__", "."): value for key, value in full.items()}
    return GgufHeader(Path("m.gguf"), 3, 1000, 32, 512, full, ())


def test_a_limit_is_kept_to_the_byte(converted: Converter) -> None:
    path = converted()
    read = read_gguf_header(path)
    total = plan_file(read, EngineSettings(128))[0].total
    with LlamaEngine(path, EngineSettings(128, threads=1, memory=total)) as engine:
        assert engine.info.plan is not None
        assert engine.info.plan.total == total
    with pytest.raises(MemoryShortage, match=r"does not fit.*--type.*--context"):
        LlamaEngine(path, EngineSettings(128, threads=1, memory=total - 1))


def test_a_model_larger_than_memory(converted: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted()
    LlamaEngine(path, EngineSettings()).close()
    monkeypatch.setattr("psutil.virtual_memory", small_memory)
    with pytest.raises(MemoryShortage, match=r"f16\.gguf: does not fit"):
        LlamaEngine(path, EngineSettings())


@pytest.mark.parametrize("load", ["mmap", "fast", "locked", "direct"])
def test_what_is_in_memory(converted: Converter, load: str) -> None:
    if load == "locked":
        pytest.importorskip("resource")
    path = converted(kind="q4_0")
    with LlamaEngine(path, EngineSettings(128, threads=1, load=load)) as engine:
        engine.feed(list(range(20)))
        use = engine.memory()
    assert use.kv == 2 * 2 * 2 * 64 * 256  # bytes, K and V, layers, width, cells
    assert use.weights > 0
    assert 0 < use.compute < 1 << 20
    assert use.logits == 2 * engine.vocab.n_tokens * 4
    assert 0 < use.anonymous < use.rss <= peak_rss_bytes() + (1 << 20)
    assert (use.model_pages > 0) == (load in ("mmap", "locked"))
    assert use.planned == engine.info.plan.total


SMAPS = """\
00400000-0048a000 r-xp 00000000 fd:03 960637 /bin/bash
Size:                552 kB
Rss:                 460 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
7f1000000000-7f1000400000 r--s 00001000 fd:03 11 /models/a b.gguf
Rss:                4000 kB
Pss_Dirty:             8 kB
Anonymous:             0 kB
7f2000000000-7f2000400000 rw-p 00000000 00:00 0
Rss:                 100 kB
Anonymous:            96 kB
7f3000000000-7f3000400000 r--s 00401000 fd:03 11 /models/a b.gguf
Rss:                  24 kB
Anonymous:             0 kB
"""


def test_resident_pages_by_mapping() -> None:
    found = parse_smaps(SMAPS, "/models/a b.gguf")
    assert found == (4584 * 1024, 96 * 1024, 4024 * 1024)
    assert parse_smaps(SMAPS, "/models/a")[2] == 0
    assert parse_smaps("", "/models/a") == (0, 0, 0)
    assert MemoryUse().rss == 0


# ---- the context


def test_the_default_context_is_the_trained_one_up_to_4096() -> None:
    assert choose_context(header(context_length=128), 0) == (128, ())
    assert choose_context(header(context_length=131072), 0) == (4096, ())
    assert choose_context(header(), 0) == (2048, ())


def test_a_context_within_the_trained_one() -> None:
    assert choose_context(header(context_length=2048), 2048) == (2048, ())
    assert choose_context(header(context_length=8192), 8000) == (8000, ())


def test_a_longer_context_is_warned_of() -> None:
    n_ctx, notes = choose_context(header(context_length=128), 129)
    assert n_ctx == 129
    assert len(notes) == 1
    assert "--context 129" in notes[0]
    assert "128 tokens" in notes[0]


def test_bloom_has_no_trained_length() -> None:
    assert choose_context(header("bloom", context_length=128), 500) == (500, ())


def test_learned_positions_end_where_they_end() -> None:
    assert choose_context(header("gpt2", context_length=1024), 1024) == (1024, ())
    with pytest.raises(SettingsError, match=r"--context 1025.*1024 learned positions"):
        choose_context(header("gpt2", context_length=1024), 1025)


@pytest.mark.parametrize(
    "key", ["context_length", "block_count", "embedding_length", "attention__head_count",
            "attention__head_count_kv", "feed_forward_length"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["text", -5, 0, 1.5, True, float("nan"), 1 << 62, (1, 2)])
def test_hostile_metadata_is_refused_or_counted(key: str, value: Any) -> None:
    good = {"context_length": 128, "block_count": 2, "embedding_length": 64,
            "attention__head_count": 2}  # fmt: skip
    bad = header(**{**good, key: value})
    try:
        plan, _ = plan_file(bad, EngineSettings(memory=1 << 40))
    except (GgufError, MemoryShortage) as error:
        assert "m.gguf" in str(error)
    else:
        assert plan.sizes.n_ctx >= 1
        assert plan.kv >= 0
