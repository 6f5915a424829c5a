"""Quality per file and cache against numpy on all logits; what does not compare is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comparison import all_logits, log_softmax
from helpers import Converter

from infer_os.measure.quality import (
    Candidate,
    QualitySettings,
    check_schedules,
    check_vocabularies,
    measure_quality,
    text_tokens,
)
from infer_os.measure.rows import Row, make_rows, select
from infer_os.native.errors import EvaluateError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.errors import BenchError, SettingsError

SETTINGS = QualitySettings(window=32, windows=2, threads=1)
TOKENS = [int(token) for token in np.random.default_rng(3).integers(1, 300, 64)]


def figures(converted: Converter, kv: str, kind: str = "q8_0") -> list[Row]:
    path = converted(kind=kind)
    schedules, _ = check_schedules(read_gguf_header(path), [kv], SETTINGS.window)
    return make_rows(
        measure_quality(
            Candidate(kind, path), converted(kind="f32"), schedules, TOKENS, SETTINGS,
            lambda label: None,
        ),
        "m",
    )  # fmt: skip


def expected(converted: Converter, kind: str) -> tuple[float, float, float]:
    """Perplexity, KL and top-1 of the second half of each window."""
    logs, kls, tops = [], [], []
    for window in (TOKENS[:32], TOKENS[32:]):
        ids = np.array(window)
        p = log_softmax(all_logits(converted(kind="f32"), ids)[16:31])
        q = log_softmax(all_logits(converted(kind=kind), ids)[16:31])
        logs.append(q[np.arange(15), ids[17:]])
        kls.append((np.exp(p) * (p - q)).sum(1))
        tops.append(p.argmax(1) == q.argmax(1))
    return (
        float(np.exp(-np.concatenate(logs).mean())), float(np.concatenate(kls).mean()),
        float(np.concatenate(tops).mean()),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
# the second is gone through token by token, and changes from F16 to something as exact
@pytest.mark.parametrize("kv", ["f16", "f32:20,f16:32"])
def test_figures_equal_numpy(converted: Converter, kv: str, kind: str) -> None:
    rows = figures(converted, kv, kind)
    perplexity, kl, top1 = expected(converted, kind)
    one = {metric: select(rows, metric, type=kind, kv=kv)[0] for metric in
           ("perplexity", "kl", "top1")}  # fmt: skip
    assert one["perplexity"].median == pytest.approx(perplexity, rel=1e-2)
    assert one["kl"].median == pytest.approx(kl, rel=0.1, abs=1e-6)
    assert one["top1"].median == pytest.approx(top1, abs=0.04)
    assert one["perplexity"].labels["tokens"] == 30
    header = read_gguf_header(converted(kind=kind))
    assert select(rows, "bits_per_weight", type=kind)[0].median == header.bits_per_weight


def test_a_coarse_stage_shows_where_it_holds(converted: Converter) -> None:
    fine = select(figures(converted, "f16", "f16"), "kl")[0].median
    staged = select(figures(converted, "f16:16,q4_0:32", "f16"), "kl")[0].median
    late = select(figures(converted, "f16:31,q4_0:32", "f16"), "kl")[0].median
    # the candidate has the cache, not the reference
    exact = select(figures(converted, "f16", "f16"), "perplexity")[0].median
    coarse = select(figures(converted, "f16:16,q4_0:32", "f16"), "perplexity")[0].median
    assert abs(coarse / exact - 1) > 1e-4
    assert fine < 1e-5
    assert staged > 10 * fine
    assert late < staged  # of a window, only the last token meets the coarse stage


def test_without_a_reference_there_is_no_divergence(converted: Converter) -> None:
    schedules, _ = check_schedules(read_gguf_header(converted()), ["f16", "f32:8,f16:32"], 32)
    found = measure_quality(
        Candidate("a", converted()), None, schedules, TOKENS, SETTINGS, lambda label: None
    )
    rows = make_rows(found, "m")
    assert select(rows, "kl") == []
    whole, staged = select(rows, "perplexity")
    assert whole.median == pytest.approx(staged.median, rel=1e-3)


def test_another_vocabulary_is_refused(converted: Converter, tmp_path: Path) -> None:
    check_vocabularies(converted(), converted(kind="q8_0"))
    other = tmp_path / "other.gguf"
    token = list(read_gguf_header(converted()).metadata["tokenizer.ggml.tokens"])[-1].encode()
    other.write_bytes(converted().read_bytes().replace(token, b"~" * len(token), 1))
    with pytest.raises(BenchError, match=r"--reference .*another vocabulary.*token \d+ is"):
        check_vocabularies(other, converted())


def test_a_short_text_is_refused(converted: Converter) -> None:
    with pytest.raises(EvaluateError, match=r"too short: .* do not fill a window of 32"):
        text_tokens(converted(), "few words", SETTINGS)


@pytest.mark.parametrize(
    ("kv", "part"), [("f16:16", "ends at 16 tokens"), ("q9", "unknown type"), ("q4_0:8,f16", "out")]
)
def test_caches_that_cannot_be(converted: Converter, kv: str, part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        check_schedules(read_gguf_header(converted()), [kv], 32)


@pytest.mark.parametrize(("window", "windows"), [(8, 1), (1 << 20, 1), (32, 0)])
def test_windows_that_cannot_be(window: int, windows: int) -> None:
    with pytest.raises(SettingsError, match=r"^windows? \d+: expected"):
        QualitySettings(window, windows)
