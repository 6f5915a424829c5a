"""Techniques: what the arms are, what rows and reasons say, one real run in processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Converter

from infer_os.measure.arms import (
    ALL_ROWS,
    Arm,
    ArmProcess,
    ArmResult,
    ArmTask,
    engine_settings,
    guess_figures,
    run_arm,
    run_in_turns,
)
from infer_os.measure.projection import project
from infer_os.measure.rows import select
from infer_os.measure.tables import all_tables, reasons
from infer_os.measure.techniques import TECHNIQUES, TechniqueFiles, make_arms, technique_rows
from infer_os.models.bundled import DRAFT, TARGET
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.settings import EngineSettings
from infer_os.runtime.speculative.figures import DrafterReport, SpeculationReport

FILES = TechniqueFiles(Path("f16.gguf"), Path("q4.gguf"), Path("draft.gguf"))
BASE = ArmResult(
    n_tokens=10, prefill_s=1.0, decode_s=1.0, draw_s=0.1, token_bytes=1000, kv_read=100, peak=2000,
    weights=900, kv=400, compute=100, logits=50,
)  # fmt: skip


def test_arms_differ_from_the_baseline_in_one_thing_each() -> None:
    arms = {arm.name: arm for arm in make_arms(FILES, EngineSettings(2048), 1024)}
    assert list(arms) == [
        "baseline", "zero-copy", "staged-kv", "speculative", "memory", "quantized", "all",
    ]  # fmt: skip
    base = arms["baseline"]
    assert (base.path, base.copying, base.all_rows) == (FILES.baseline, True, True)
    assert base.settings.kv == "f16"
    assert arms["zero-copy"] == replace(base, name="zero-copy", copying=False)
    assert arms["memory"] == replace(base, name="memory", all_rows=False)
    assert arms["quantized"] == replace(base, name="quantized", path=FILES.quantized)
    staged = arms["staged-kv"]
    assert staged.settings.kv == "f16:256,q8_0:512,q4_0:2048"
    assert staged == replace(base, name="staged-kv", settings=staged.settings)
    assert arms["speculative"].settings == replace(base.settings, draft="draft.gguf")
    together = arms["all"]
    assert together.settings == replace(staged.settings, draft="draft.gguf")
    assert (together.path, together.copying, together.all_rows) == (FILES.quantized, False, False)


def test_what_has_no_file_is_left_out() -> None:
    arms = make_arms(TechniqueFiles(FILES.baseline), EngineSettings(2048), 1024)
    assert [arm.name for arm in arms] == ["baseline", "zero-copy", "staged-kv", "memory", "all"]
    assert arms[-1].path == FILES.baseline
    assert arms[-1].settings.draft == "none"


def test_rows_of_logits_are_reserved_for_all_tokens_or_as_needed() -> None:
    arm = Arm(
        "x", Path("x"), EngineSettings(64, threads=2, draft="lookup", draft_max=3), True, True
    )
    assert engine_settings(arm).n_outputs == ALL_ROWS
    assert engine_settings(arm).threads == 2
    assert engine_settings(replace(arm, all_rows=False)).n_outputs == 4


def test_ratios_are_those_of_the_same_round() -> None:
    fast = replace(BASE, decode_s=0.5, peak=1500, kv=100)
    slow_round = [replace(BASE, decode_s=4.0), replace(fast, decode_s=2.0)]
    rows = technique_rows(
        {"baseline": [BASE, slow_round[0]], "staged-kv": [fast, slow_round[1]]}, "m", 1e6
    )
    ratio = select(rows, "technique_ratio", technique="staged-kv")[0]
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)
    assert ratio.labels["claimed"] == 1.3
    assert ratio.labels["reached"] is True
    assert "reason" not in ratio.labels
    saved = select(rows, "technique_saved", technique="staged-kv")[0]
    assert saved.median == pytest.approx(0.25)
    assert select(rows, "technique_kv_saved", technique="staged-kv")[0].median == 0.75
    assert saved.labels["reached"] is False
    assert "the KV cache is 20 % of the baseline's peak" in str(saved.labels["reason"])
    assert "of the cache itself 75 %" in str(saved.labels["reason"])


def test_every_claim_that_is_missed_has_a_reason_from_the_figures() -> None:
    mine = replace(BASE, token_bytes=500, drafted=60, accepted=30, rounds=20, guess_s=0.01,
                   steps=((1, 0.1), (4, 0.2)), logits=4, compute=90)  # fmt: skip
    results = {technique.name: [mine] for technique in TECHNIQUES}
    rows = technique_rows({"baseline": [BASE], **results}, "m", bandwidth=10_000)
    found = dict(reasons(rows))
    assert len(found) == 2 * sum(t.speed is not None for t in TECHNIQUES)
    speed = found["zero-copy token loop, speed"]
    assert "takes 10 ms of a token's 100 ms (10 %)" in speed
    assert "at most 1.11 times" in speed
    assert "K and V are 10 % of the 1.0 kB" in found["KV cache in stages, speed"]
    guessing = found["speculative decoding, speed"]
    assert "30 of 60 guesses were right: 2.50 tokens a verification of 4.0" in guessing
    assert "2.00 times as long as a single step" in guessing
    assert "0.10 steps" in guessing
    assert "would allow 2.00 times" in found["all together, speed"]
    assert "reading takes 50 % of a token's time" in found["all together, speed"]
    titles = [table.title for table in all_tables(rows)]
    assert titles == ["Techniques"]


def test_a_model_without_a_draft_gets_a_projection() -> None:
    # 30 of 100 were right, but of those that were judged four of five
    pair = [replace(BASE, drafted=100, accepted=30, rounds=20, acceptance=0.8, guess_s=0.01,
                    steps=((1, 0.1),))]  # fmt: skip
    steps = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0, 7: 1.0}  # more tokens cost nothing more
    found = project(steps, pair, "the bundled pair", "random weights")
    assert found is not None
    # six guesses of rate 0.8: the sum of its powers, over one step and six guesses of a tenth
    assert found.gain() == pytest.approx(sum(0.8**n for n in range(7)) / 1.6)
    rows = technique_rows({"baseline": [BASE]}, "m", 1e6, found)
    row = select(rows, "technique_ratio", technique="speculative")[0]
    assert row.labels["projected"] is True
    assert str(row.labels["reason"]).startswith("random weights: the rate of right guesses (80 %)")
    assert "speculative decoding (projected)" in [r[0] for r in all_tables(rows)[0].rows]
    assert project(steps, [BASE], "the bundled pair", "x") is None


def test_a_result_has_the_rate_of_the_draft_model() -> None:
    lookup = DrafterReport("lookup", 20, 2, 10, 0.2, 1e-6, 1.0, True)
    model = DrafterReport("model", 60, 20, 15, 0.6, 0.01, 1.2, True)
    figures = guess_figures(SpeculationReport((lookup, model), 10.0, {1: 0.1}))
    assert figures == {
        "drafted": 80, "accepted": 22, "rounds": 25, "acceptance": 0.6, "guess_s": 0.01,
    }  # fmt: skip
    # nothing was seen of it, so nothing is said
    idle = replace(model, drafted=0, accepted=0, rounds=0)
    assert guess_figures(SpeculationReport((lookup, idle), 10.0, {}))["acceptance"] == 0
    assert "acceptance" not in guess_figures(SpeculationReport((lookup,), 10.0, {}))


# ---- a round


def test_a_round_goes_on_where_the_text_would_end() -> None:
    engine = FakeEngine(saying("ok"), 100)
    arm = Arm("x", Path("x"), EngineSettings())
    result = run_arm(engine, arm, ArmTask("words ", 20, 8))
    assert result.n_tokens == 8
    assert len(engine.tokens) == 28
    assert 0 < result.draw_s < result.decode_s
    assert result.peak > 1 << 20


def test_all_rows_are_computed_and_only_then(converted: Converter) -> None:
    for all_rows in (True, False):
        arm = Arm("x", converted(), EngineSettings(128, threads=1), all_rows=all_rows)
        with LlamaEngine(arm.path, engine_settings(arm)) as engine:
            seen: list[int] = []
            decode = engine.context.decode

            def watched(tokens, position, *, outputs=1):  # type: ignore[no-untyped-def]
                seen.append(outputs)  # noqa: B023
                decode(tokens, position, outputs=outputs)  # noqa: B023

            engine.context.decode = watched  # type: ignore[method-assign]
            result = run_arm(engine, arm, ArmTask("some words ", 40, 4))
            assert seen[0] == (39 if all_rows else 1)
            # a row per token of a batch, or one and the window's
            assert result.logits == (ALL_ROWS if all_rows else 2) * engine.vocab.n_tokens * 4
            assert bool(result.steps) is all_rows


@pytest.fixture(scope="module")
def bundled(converted: Converter) -> TechniqueFiles:
    return TechniqueFiles(converted(TARGET, "f16"), None, converted(DRAFT, "q8_0"))


def test_arms_run_in_processes_by_turns(bundled: TechniqueFiles) -> None:
    arms = make_arms(bundled, EngineSettings(256, threads=1), 64)
    arms = [arm for arm in arms if arm.name in ("baseline", "staged-kv", "speculative")]
    task = ArmTask("It was a truth, that she had known him. " * 10, 64, 16)
    seen: list[int] = []
    results = run_in_turns(arms, [task, task], lambda done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert {name: len(found) for name, found in results.items()} == {
        "baseline": 1, "staged-kv": 1, "speculative": 1,
    }  # fmt: skip
    base, staged = results["baseline"][0], results["staged-kv"][0]
    assert staged.kv < base.kv
    # what it reads of the cache is of fewer bits
    assert staged.kv_read == pytest.approx(base.kv_read * 18 / 64)
    assert 20e6 < base.peak < 1e9
    # the draft's own weights are not counted twice, but it does take memory
    assert results["speculative"][0].peak > base.peak
    rows = technique_rows(results, "austen", 1e10)
    assert all_tables(rows)[0].rows


def test_what_an_arm_raises_reaches_the_caller(bundled: TechniqueFiles) -> None:
    arm = Arm("x", bundled.baseline, EngineSettings(256, kv="f16", kv_budget=1 << 30))
    with pytest.raises(SettingsError, match="give one of them"):
        ArmProcess(arm)
