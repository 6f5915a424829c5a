"""KV schedules: what a SPEC or a number of bytes becomes. No model is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infer_os.native.kv_state import KV_TYPES, KvGeometry
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.kv.schedule import (
    KvModel,
    KvSchedule,
    KvStage,
    batch_tokens,
    cells_for,
    check_types,
    choose_schedule,
    migration_bytes,
    parse_spec,
    schedule_from_budget,
    schedule_from_spec,
)

GPTJ = KvModel(KvGeometry(28, 16, 256, 256), n_threads=2)
BLOOM = KvModel(KvGeometry(30, 32, 128, 128), n_threads=2)
NEOX = KvModel(KvGeometry(44, 64, 96, 96), n_threads=2)
TINY = KvModel(KvGeometry(2, 2, 64, 64))
MODELS = {"gptj": GPTJ, "bloom": BLOOM, "neox": NEOX, "tiny": TINY}
MIB = 1 << 20


def shown(schedule: KvSchedule) -> list[tuple[str, int]]:
    return [(stage.name, stage.up_to) for stage in schedule.stages]


# ---- SPEC


@pytest.mark.parametrize("name", KV_TYPES)
def test_a_type_alone_holds_the_context(name: str) -> None:
    schedule, notes = schedule_from_spec(name, GPTJ, 2048)
    assert shown(schedule) == [(name, 2048)]
    assert (schedule.n_ctx, schedule.spec, schedule.budget, notes) == (2048, name, None, ())


@pytest.mark.parametrize(
    ("spec", "n_ctx", "expected"),
    [
        ("f16:512,q8_0:1024,q4_0:2048", 2048, [("f16", 512), ("q8_0", 1024), ("q4_0", 2048)]),
        ("F16:512, Q8_0:2048", 2048, [("f16", 512), ("q8_0", 2048)]),
        ("f16:512,q8_0", 2048, [("f16", 512), ("q8_0", 2048)]),
        ("q8_0/q4_0", 1000, [("q8_0/q4_0", 1000)]),
        ("f16:100,q8_0/q4_0:300", 300, [("f16", 100), ("q8_0/q4_0", 300)]),
        ("f16:512,q8_0:1024", 700, [("f16", 512), ("q8_0", 700)]),
    ],
)  # fmt: skip
def test_specs(spec: str, n_ctx: int, expected: list[tuple[str, int]]) -> None:
    schedule, notes = schedule_from_spec(spec, GPTJ, n_ctx)
    assert shown(schedule) == expected
    assert notes == ()
    assert schedule.n_ctx == n_ctx


@pytest.mark.parametrize(
    ("spec", "n_ctx", "expected", "missing"),
    [
        ("f16:512,q8_0:1024,q4_0:2048", 1024, [("f16", 512), ("q8_0", 1024)], "q4_0"),
        ("f16:512,q8_0:1024,q4_0:2048", 700, [("f16", 512), ("q8_0", 700)], "q4_0"),
        ("f16:512,q8_0:1024,q4_0:2048", 300, [("f16", 300)], "q8_0, q4_0"),
        ("f16:512,q8_0", 512, [("f16", 512)], "q8_0"),
    ],
)
def test_stages_past_the_context_are_said_to_be_left_out(
    spec: str, n_ctx: int, expected: list[tuple[str, int]], missing: str
) -> None:
    schedule, notes = schedule_from_spec(spec, GPTJ, n_ctx)
    assert shown(schedule) == expected
    assert notes == (f"--kv {spec}: the context ends at {n_ctx} tokens, before {missing}",)


def test_a_last_stage_that_ends_early_caps_the_context() -> None:
    schedule, notes = schedule_from_spec("f16:512,q8_0:1024", GPTJ, 2048)
    assert schedule.n_ctx == 1024
    assert len(notes) == 1 and "1024" in notes[0]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("q9_0", "unknown type q9_0; known: f32, f16, bf16, q8_0"),
        ("f16/iq4_nl", "unknown type iq4_nl"),
        ("f16:512,q8_0:512", "out of order"),
        ("f16:512,q8_0:256", "out of order"),
        ("f16:0", "out of order"),
        ("f16,q8_0:512", "only the last stage"),
        ("", "is not a stage"),
        ("f16:", "is not a stage"),
        ("f16:x", "is not a stage"),
        ("f16:-5", "is not a stage"),
        (",f16", "is not a stage"),
        ("f16/q8_0/q4_0", "is not a stage"),
        ("q8_0:512,f16:1024", "q8_0 saves no memory"),
        ("f16:512,f16:1024", "saves no memory"),
        ("q8_0/q4_0:512,q4_0/q8_0:1024", "saves no memory"),
    ],
)
def test_bad_specs(spec: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        schedule_from_spec(spec, GPTJ, 2048)


def test_parsing_does_not_ask_for_a_model() -> None:
    assert parse_spec("f16:4,q8_0/q4_0") == (KvStage("f16", "f16", 4), KvStage("q8_0", "q4_0", 0))


@pytest.mark.parametrize(("head", "works"), [(32, True), (96, True), (80, False), (100, False)])
def test_blocks_divide_the_heads(head: int, works: bool) -> None:
    model = KvModel(KvGeometry(2, 4, head, head))
    check_types("--kv f16/bf16", parse_spec("f16/bf16"), model)
    for spec in ("q8_0", "f16/q4_0", "q5_1/f16"):
        if works:
            check_types(spec, parse_spec(spec), model)
        else:
            with pytest.raises(
                SettingsError, match=f"do not divide this model's . heads of {head}"
            ):
                check_types(spec, parse_spec(spec), model)


def test_quantized_v_needs_flash_attention() -> None:
    model = replace(GPTJ, flash_attention=False)
    schedule_from_spec("q8_0/f16", model, 512)
    with pytest.raises(SettingsError, match=r"q4_0 needs flash attention.*take q8_0/f16"):
        schedule_from_spec("q8_0/q4_0", model, 512)


# ---- bytes


@pytest.mark.parametrize(
    ("model", "f16", "q8_0", "q4_0"),
    [(GPTJ, 896, 476, 252), (BLOOM, 960, 510, 270), (NEOX, 2112, 1122, 594)],
)
def test_bytes_at_2048_tokens(model: KvModel, f16: int, q8_0: int, q4_0: int) -> None:
    sizes = [KvStage(name, name, 2048).n_bytes(model) / MIB for name in ("f16", "q8_0", "q4_0")]
    assert sizes == [f16, q8_0, q4_0]
    assert 1 - q4_0 / f16 >= 0.71


def test_cells_are_rounded_up() -> None:
    assert [cells_for(n) for n in (1, 256, 257, 2048)] == [256, 256, 512, 2048]
    assert KvStage("f16", "f16", 300).n_bytes(TINY) == KvStage("f16", "f16", 512).n_bytes(TINY)


def test_batches_are_small() -> None:
    for model in MODELS.values():
        form = KvStage("f16", "f16", 2048).form(model)
        batch = batch_tokens(form, model.geometry, 2048)
        assert 1 <= batch <= 2048 // 16
        assert batch == 1 or batch * form.token_bytes(model.geometry) <= 8 * MIB


def test_migration_counts_everything() -> None:
    old, new = KvStage("f16", "f16", 512), KvStage("q8_0", "q8_0", 1024)
    row = TINY.geometry.n_layer * 128 * 2
    # 512 cells of F16, 300 saved rows of Q8_0 and a batch of 32 F16 rows, one row of scratch
    rows = 300 * (row * 34 // 32 + 12) + -(-300 // 32) * (16 + 8 + 4 * 12)
    batch = 32 * (row * 2 + 12) + 16 + 8 + 4 * 12
    assert migration_bytes(TINY, old, new, 300) == max(
        512 * row * 2 + rows + batch + 128 * 4, 1024 * row * 34 // 32 + rows
    )


def test_peak_is_the_worst_moment() -> None:
    schedule, _notes = schedule_from_spec("f16:512,q8_0:1024,q4_0:2048", GPTJ, 2048)
    moves = [
        migration_bytes(GPTJ, schedule.stages[i], schedule.stages[i + 1], n)
        for i, n in enumerate((512, 1024))
    ]
    assert schedule.peak_bytes(GPTJ) == max(moves) > 252 * MIB
    single, _notes = schedule_from_spec("q4_0", GPTJ, 2048)
    assert single.peak_bytes(GPTJ) == 252 * MIB


def test_index() -> None:
    schedule, _notes = schedule_from_spec("f16:512,q8_0:1024", GPTJ, 1024)
    assert [schedule.index_for(n) for n in (0, 512, 513, 1024, 1025)] == [0, 0, 1, 1, 1]


# ---- budgets


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n_ctx", [8, 256, 700, 2048, 5000])
def test_budgets_hold(name: str, n_ctx: int) -> None:
    model = MODELS[name]
    smallest = KvStage("q4_0", "q4_0", 256).n_bytes(model)
    full = KvStage("f16", "f16", n_ctx).n_bytes(model)
    for budget in {int(smallest + (full - smallest) * i / 40) for i in range(42)}:
        if budget < smallest:
            continue
        schedule, notes = schedule_from_budget(budget, model, n_ctx)
        assert schedule.peak_bytes(model) <= budget
        assert (schedule.n_ctx < n_ctx) == bool(notes)
        ends = [stage.up_to for stage in schedule.stages]
        assert ends == sorted(set(ends))
        for n_tokens in range(1, schedule.n_ctx + 1, 97):
            stage = schedule.prompt_stage(model, n_tokens)
            goal = schedule.stages[schedule.index_for(n_tokens)]
            assert n_tokens <= stage.up_to
            assert stage.n_bytes(model) <= budget
            if stage != goal:
                assert migration_bytes(model, stage, goal, n_tokens) <= budget


@pytest.mark.parametrize(
    ("mib", "expected"),
    [
        (896, [("f16", 2048)]),
        (895, [("f16", 1280), ("q8_0", 2048)]),
        (600, [("f16", 512), ("q8_0", 2048)]),
        (476, [("q8_0", 2048)]),
        (475, [("f16", 256), ("q8_0", 512), ("q8_0/q4_0", 2048)]),
        (364, [("q8_0/q4_0", 2048)]),
        (363, [("q5_1", 2048)]),
        (335, [("q8_0/q4_0", 256), ("q5_1/q4_0", 2048)]),
        (300, [("q5_1/q4_0", 2048)]),
        (252, [("q4_0", 2048)]),
        (251, [("q4_0", 1792)]),
        (32, [("q4_0", 256)]),
    ],
)
def test_budgets_of_gptj(mib: int, expected: list[tuple[str, int]]) -> None:
    schedule, _notes = schedule_from_budget(mib * MIB, GPTJ, 2048)
    assert shown(schedule) == expected
    assert schedule.budget == mib * MIB


def test_a_budget_to_the_byte() -> None:
    exact = KvStage("q8_0", "q8_0", 2048).n_bytes(GPTJ)
    assert schedule_from_budget(exact, GPTJ, 2048)[0].stages[-1].name == "q8_0"
    assert schedule_from_budget(exact - 1, GPTJ, 2048)[0].stages[-1].name == "q8_0/q4_0"


def test_too_small_for_one_token() -> None:
    smallest = KvStage("q4_0", "q4_0", 256).n_bytes(GPTJ)
    assert schedule_from_budget(smallest, GPTJ, 2048)[0].n_ctx == 256
    for budget in (1, smallest - 1):
        with pytest.raises(SettingsError, match=f"too small for one token.*{smallest} bytes"):
            schedule_from_budget(budget, GPTJ, 2048)


def test_heads_without_blocks_stay_in_f16() -> None:
    model = KvModel(KvGeometry(2, 4, 80, 80))
    full = KvStage("f16", "f16", 2048).n_bytes(model)
    assert shown(schedule_from_budget(full // 2, model, 2048)[0]) == [("f16", 1024)]
    model = replace(TINY, flash_attention=False)
    assert schedule_from_budget(MIB, model, 512)[0].stages[-1].name == "f16"


# ---- prompts


def test_prompts_are_computed_in_full_precision() -> None:
    schedule, _notes = schedule_from_spec("f16:512,q8_0:1024,q4_0:2048", GPTJ, 2048)
    assert schedule.prompt_stage(GPTJ, 512) == schedule.stages[0]
    assert schedule.prompt_stage(GPTJ, 1500) == KvStage("f16", "f16", 1500)


def test_a_budget_may_forbid_full_precision() -> None:
    schedule, _notes = schedule_from_budget(600 * MIB, GPTJ, 2048)
    assert schedule.prompt_stage(GPTJ, 520).name == "f16"
    assert schedule.prompt_stage(GPTJ, 1500) == schedule.stages[-1]
    free = replace(schedule, budget=None)
    assert free.prompt_stage(GPTJ, 1500) == KvStage("f16", "f16", 1500)


# ---- all options together


def test_choice() -> None:
    assert choose_schedule("", 0, GPTJ, 2048)[0].spec == "f16"
    assert choose_schedule("q8_0", 0, GPTJ, 2048)[0].spec == "q8_0"
    assert choose_schedule("", 252 * MIB, GPTJ, 2048)[0].spec == "q4_0"
    assert choose_schedule("auto", 252 * MIB, GPTJ, 2048)[0].spec == "q4_0"
    with pytest.raises(SettingsError, match="give one of them"):
        choose_schedule("q8_0", MIB, GPTJ, 2048)


def test_a_budget_is_for_all_sequences_together() -> None:
    schedule, _notes = choose_schedule("", 4 * 252 * MIB + 3, GPTJ, 2048, 4)
    assert schedule == schedule_from_budget(252 * MIB, GPTJ, 2048)[0]
    with pytest.raises(SettingsError, match="of each sequence 1310720: too small"):
        choose_schedule("", 5 * MIB, GPTJ, 2048, 4)
