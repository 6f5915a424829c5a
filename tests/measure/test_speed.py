"""What is measured is what is computed: tokens held, order, sequences against single runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers import Converter

from infer_os.measure.copying import RowSampler, row_probabilities
from infer_os.measure.settings import BenchSettings
from infer_os.measure.speed import (
    bandwidth_shares,
    bench_tokens,
    measure_depths,
    measure_growth,
    token_bytes,
)
from infer_os.measure.throughput import measure_batches
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.sampler import LlamaFilter
from infer_os.runtime.settings import EngineSettings, SamplingSettings

SMALL = BenchSettings(repeats=2, n_prompt=7, n_decode=3)


def test_each_depth_is_measured_in_each_round() -> None:
    engine = FakeEngine(saying("x" * 1000), 200)
    tokens = bench_tokens(engine, "some text ", 80)
    assert len(tokens) == 80
    assert tokens[:20] == list(b"some text some text ")
    found = measure_depths({"f16": engine}, tokens, (0, 50), SMALL)
    counts = Counter((one.metric, dict(one.labels).get("depth")) for one in found)
    assert counts == {
        ("first_token", None): 2, ("decode", 0): 2, ("prefill", 0): 2, ("decode", 50): 2,
        ("prefill", 50): 2,
    }  # fmt: skip
    assert all(one.value > 0 for one in found)
    # the text itself is held in the end, up to the deepest prefill
    assert list(engine.tokens) == tokens[: 50 + 3 + 7]


def test_engines_keep_their_order_whoever_begins() -> None:
    engines = {name: FakeEngine(saying("x" * 500), 100) for name in ("a", "b", "c")}
    tokens = bench_tokens(engines["a"], "abc", 40)
    found = measure_depths(engines, tokens, (0,), SMALL)
    assert list(dict.fromkeys(dict(one.labels)["kv"] for one in found)) == ["a", "b", "c"]


def test_growth_goes_through_the_stages(converted: Converter) -> None:
    settings = EngineSettings(256, threads=1, kv="f16:128,q8_0:256")
    with LlamaEngine(converted(), settings) as engine:
        tokens = bench_tokens(engine, "some words to go on with ", 256)
        found = [one for one in measure_growth(engine, "x", tokens) if one.metric == "kv_memory"]
    stages = [dict(one.labels)["stage"] for one in found]
    assert stages == ["f16", "f16", "q8_0", "q8_0"]
    assert found[1].value > found[2].value > 0  # both have 256 cells


def test_the_bandwidth_share_counts_weights_and_cache(converted: Converter) -> None:
    with LlamaEngine(converted(), EngineSettings(128, threads=1)) as engine:
        plan = engine.info.plan
        assert plan is not None
        row = 2 * 2 * plan.shape.n_layer * plan.shape.n_head_kv * plan.shape.head_dim  # K, V, F16
        assert token_bytes(engine, 0) == plan.weights.read_bytes
        assert token_bytes(engine, 60) == plan.weights.read_bytes + 60 * row
        tokens = bench_tokens(engine, "words ", 80)
        found = measure_depths({"f16": engine}, tokens, (60,), SMALL)
        decode = [one for one in found if one.metric == "decode"]
        shares = bandwidth_shares({"f16": engine}, found, 1e9)
    expected = [one.value * (plan.weights.read_bytes + 60 * row) / 1e9 for one in decode]
    assert [one.value for one in shares] == pytest.approx(expected)


# ---- sequences


def test_batches_are_measured_by_turns(converted: Converter) -> None:
    seen: list[tuple[int, int]] = []
    settings = EngineSettings(threads=1)
    found = measure_batches(
        converted(), settings, (1, 3), 4, 2, lambda done, total: seen.append((done, total))
    )
    assert [dict(one.labels)["sequences"] for one in found] == [1, 3, 1, 3]
    assert all(one.value > 0 for one in found)
    assert seen[-1] == (4, 4)


# ---- the baseline's sampler


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(),
        SamplingSettings(temperature=0),
        SamplingSettings(top_k=0, top_p=1, min_p=0),
        SamplingSettings(top_k=5, top_p=1, min_p=0, temperature=2),
        SamplingSettings(top_k=0, top_p=0.5, min_p=0),
        SamplingSettings(top_k=0, top_p=1, min_p=0.2),
    ],
)
def test_copied_rows_are_filtered_as_llama_cpp_does(settings: SamplingSettings) -> None:
    logits = np.random.default_rng(4).standard_normal(300).astype(np.float32) * 2
    ids, p = row_probabilities(logits, settings)
    if settings.temperature == 0:
        assert list(ids) == [int(logits.argmax())]
        return
    chain = LlamaFilter(settings, 300)
    theirs = chain.distribution(logits)
    chain.close()
    assert sorted(ids) == sorted(theirs.ids)
    np.testing.assert_allclose(p, [theirs.of(int(token)) for token in ids], rtol=1e-4)


def test_a_copied_row_is_drawn_from_its_probabilities() -> None:
    class Rows:
        def logits(self, row: int = -1) -> np.ndarray:
            return np.log(np.array([0.7, 0.1, 0.2], np.float32))

    settings = SamplingSettings(1, 0, 1, 0, seed=1)
    sampler = RowSampler(settings)
    counts = Counter(sampler.draw(Rows()) for _ in range(4000))
    assert counts[0] / 4000 == pytest.approx(0.7, abs=0.04)
    assert counts[1] / 4000 == pytest.approx(0.1, abs=0.03)
