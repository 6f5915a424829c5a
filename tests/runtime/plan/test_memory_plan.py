"""The memory plan: pure functions, checked against numbers by hand and against llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from comparison import has_windows
from helpers import REFERENCES, Converter

from infer_os.convert.weight_options import weight_options
from infer_os.models.architectures import describe
from infer_os.models.catalog import find_model
from infer_os.models.shape import ModelShape, network_shape
from infer_os.native.context import Context, ContextParams
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.layouts import Repacking
from infer_os.native.model import LlamaModel
from infer_os.native.residency import context_buffers
from infer_os.runtime.kv.schedule import KvSchedule, KvStage
from infer_os.runtime.plan.choice import Wish, automatic_schedule, choose, type_table
from infer_os.runtime.plan.memory_plan import (
    Beside,
    Budget,
    MemoryShortage,
    Plan,
    Planner,
    Sizes,
    check_plan,
    compute_bytes,
    decode_tokens_per_s,
    kv_bytes,
    kv_model,
    staging_bytes,
)
from infer_os.runtime.plan.shapes import header_shape

MIB, GIB = 1 << 20, 1 << 30
X86 = Repacking(frozenset({"q4_0", "q4_k", "iq4_nl"}))


def shape_of(name: str) -> ModelShape:
    model = find_model(name)
    assert model is not None
    network = describe(model.config)
    return network_shape(model.name, network, weight_options(network))


def stage(kind: str, up_to: int = 2048) -> KvStage:
    return KvStage(kind, kind, up_to)


def whole(kind: str, up_to: int = 2048) -> KvSchedule:
    return KvSchedule((stage(kind, up_to),))


# ---- weights


@pytest.mark.parametrize(
    ("name", "kind", "billions"),
    [
        # 20,554,568,704 weights: 2 bytes each; 8.5 bits; 4.5 bits and a head of 6.56 bits
        ("gpt-neox-20b", "f16", 41.1), ("gpt-neox-20b", "q8_0", 21.9),
        ("gpt-neox-20b", "q4_0", 11.65), ("gpt-j-6B", "f16", 12.1), ("gpt-j-6B", "q4_0", 3.46),
        ("bloom-7b1", "q8_0", 7.52), ("distilgpt2", "f32", 0.328),
    ],
)  # fmt: skip
def test_the_weights_of_known_models(name: str, kind: str, billions: float) -> None:
    assert shape_of(name).option(kind).n_bytes == pytest.approx(billions * 1e9, rel=5e-3)


def test_an_unknown_type_is_no_option() -> None:
    with pytest.raises(KeyError):
        shape_of("distilgpt2").option("q9")


def test_what_a_token_reads() -> None:
    """All but the rows that are looked up; a tied embedding is read, as the head."""
    neox = shape_of("gpt-neox-20b").option("f16")
    assert neox.n_bytes - neox.read_bytes == 50432 * 6144 * 2
    gpt2 = shape_of("distilgpt2").option("f16")
    assert gpt2.n_bytes - gpt2.read_bytes == 1024 * 768 * 4  # the positions, in F32


def test_the_largest_tensor() -> None:
    bloom = shape_of("bloom-7b1").option("q4_0")
    assert bloom.largest == 250880 * 4096 // 256 * 210  # the tied head in Q6_K
    ffn = 4096 * 16384 // 32 * 18
    assert dict(bloom.largest_of)["q4_0"] == ffn
    assert bloom.main == "q4_0"
    assert staging_bytes(bloom, "direct", X86) == bloom.largest
    assert staging_bytes(bloom, "fast", X86) == ffn
    assert staging_bytes(bloom, "fast", Repacking()) == 0
    # ours compute the head, which llama.cpp leaves where it is
    assert staging_bytes(bloom, "fast", replace(X86, taken=frozenset({"q6_k"}))) == ffn
    # with AMX it would move the head as well, so nothing of the file is moved
    amx = Repacking(X86.moved | {"q6_k"}, frozenset({"q6_k"}))
    assert staging_bytes(bloom, "fast", amx) == 0
    assert staging_bytes(bloom, "fast", replace(amx, taken=frozenset())) == bloom.largest
    assert staging_bytes(bloom, "mmap", X86) == 0
    assert staging_bytes(bloom, "locked", X86) == 0


# ---- the cache


@pytest.mark.parametrize(
    ("name", "kind", "mib"),
    [
        ("gpt-j-6B", "f16", 896), ("gpt-j-6B", "q8_0", 476), ("gpt-j-6B", "q4_0", 252),
        ("bloom-7b1", "f16", 960), ("bloom-7b1", "q8_0", 510), ("bloom-7b1", "q4_0", 270),
        ("gpt-neox-20b", "f16", 2112), ("gpt-neox-20b", "q8_0", 1122),
        ("gpt-neox-20b", "q4_0", 594),
    ],
)  # fmt: skip
def test_the_cache_at_2048_tokens(name: str, kind: str, mib: int) -> None:
    shape = shape_of(name)
    assert kv_bytes(shape, whole(kind), Sizes(2048)) == mib * MIB
    assert kv_bytes(shape, whole(kind), Sizes(2048, n_seq=3)) == 3 * mib * MIB


def test_a_prompt_may_need_the_first_stages_types() -> None:
    """Without a budget a long prompt is computed in F16, and quantized afterwards."""
    shape = shape_of("gpt-j-6B")
    schedule = KvSchedule((stage("f16", 512), stage("q4_0")))
    assert kv_bytes(shape, schedule, Sizes(2048)) > (896 + 252) * MIB
    held = replace(schedule, budget=600 * MIB)
    assert kv_bytes(shape, held, Sizes(2048)) < 600 * MIB


# ---- buffers


@pytest.mark.parametrize(
    ("name", "n_ctx", "n_batch", "kind", "mib"),
    [
        # what llama.cpp 0.3.36 reserves, as it logs it
        ("gpt-j-6B", 2048, 512, "f16", 74.01), ("gpt-j-6B", 4096, 512, "f16", 76.01),
        ("gpt-j-6B", 2048, 256, "f16", 37.01), ("gpt-j-6B", 2048, 512, "q8_0", 74.28),
        ("bloom-7b1", 2048, 512, "f16", 66.01), ("bloom-7b1", 2048, 512, "q4_0", 66.09),
        ("gpt-neox-20b", 2048, 512, "f16", 98.01), ("gpt-neox-20b", 2048, 512, "q8_0", 98.01),
        ("gpt2-large", 1024, 512, "f16", 21.01), ("distilgpt2", 1024, 512, "q8_0", 13.04),
        ("pythia-160m", 2048, 512, "f16", 14.01), ("pythia-160m", 2048, 32, "f16", 0.88),
    ],
)  # fmt: skip
def test_the_compute_buffer(name: str, n_ctx: int, n_batch: int, kind: str, mib: float) -> None:
    shape = shape_of(name)
    found = compute_bytes(shape, Sizes(n_ctx, n_batch=n_batch), stage(kind, n_ctx))
    scratch = min(n_batch, n_ctx) * shape.n_ff * 292 // 256
    assert (found - scratch) / MIB == pytest.approx(mib, abs=0.02)


def test_many_rows_of_logits_decide_the_compute_buffer() -> None:
    """1024 wide, 50304 tokens, 512 rows: 104.25 MiB at most, as logged."""
    shape = replace(shape_of("gpt2-medium"), n_vocab=50304)
    found = compute_bytes(shape, Sizes(512, n_outputs=512), stage("f16", 512))
    assert 104.25 <= (found - 512 * 4096 * 292 // 256) / MIB <= 104.25 * 1.02


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_plan_is_what_llama_cpp_allocates(
    converted: Converter, folder: Path, kind: str
) -> None:
    path = converted(folder)
    shape = header_shape(read_gguf_header(path))
    if shape.head_dim % 32 and kind != "f16":
        pytest.skip("blocks of 32 do not divide these heads")
    planned = Planner(shape, Sizes(100), Budget(GIB)).plan(
        shape.options[0], whole(kind, 100), "mmap"
    )
    params = ContextParams(n_ctx=100, n_threads=1, type_k=kind, type_v=kind, window=True)
    native = has_windows(path)
    with LlamaModel(path, native=native) as model, Context(model, params) as context:
        found = context_buffers(context)
    assert planned.kv == found.kv
    assert planned.weights.n_bytes == pytest.approx(found.weights, rel=1e-3)
    scratch = 100 * shape.n_ff * 292 // 256
    assert found.compute <= planned.compute
    assert planned.compute - scratch <= 1.1 * found.compute + 40_000


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_a_config_gives_the_shape_of_its_file(
    converted: Converter, folder: Path, kind: str
) -> None:
    import json

    network = describe(json.loads((folder / "config.json").read_text()))
    before = network_shape("m", network, weight_options(network))
    after = header_shape(read_gguf_header(converted(folder, kind)))
    assert after.is_file
    assert after.options == (before.option(kind),)
    assert replace(after, name="m", options=(), is_file=False) == replace(before, options=())


# ---- plans


def plan(
    name: str = "gpt-j-6B", limit: int = 8 * GIB, load: str = "mmap", kind: str = "q4_0"
) -> Plan:
    shape = shape_of(name)
    budget = Budget(limit, 20e9, X86)
    return Planner(shape, Sizes(2048), budget).plan(shape.option(kind), whole("f16"), load)


def test_the_total_is_the_sum_of_its_parts() -> None:
    p = plan()
    assert p.total == p.weights.n_bytes + p.kv + p.compute + p.logits + p.process
    assert p.logits == 2 * 50400 * 4  # and the window's row
    assert p.process == 73_000_000 + 325 * 50400
    assert p.staging == p.draft == 0


def test_loading_may_take_more_than_running() -> None:
    """BLOOM's head goes through a buffer, before there is a cache."""
    shape = shape_of("bloom-7b1")
    weights = shape.option("q4_0")
    planner = Planner(shape, Sizes(256), Budget(8 * GIB))
    direct = planner.plan(weights, whole("f16", 256), "direct")
    assert direct.total == weights.n_bytes + direct.process + weights.largest
    assert planner.plan(weights, whole("f16", 256), "mmap").total < direct.total


def test_a_plan_fits_to_the_byte() -> None:
    exact = replace(plan(), limit=plan().total)
    check_plan(exact)
    short = replace(exact, limit=exact.total - 1)
    with pytest.raises(
        MemoryShortage, match=r"gpt-j-6B: does not fit.*--type.*--context.*--memory"
    ) as error:
        check_plan(short)
    assert error.value.plan is short


def test_a_draft_is_counted() -> None:
    shape, draft = shape_of("gpt-j-6B"), shape_of("distilgpt2")
    planner = Planner(shape, Sizes(1024), Budget(8 * GIB), draft)
    with_draft = planner.plan(shape.option("q4_0"), whole("f16", 1024), "mmap")
    alone = replace(planner, draft=None).plan(shape.option("q4_0"), whole("f16", 1024), "mmap")
    added = with_draft.total - alone.total
    assert added == with_draft.draft
    least = draft.option("q4_0").n_bytes + 36 * MIB // 2 + 12 * MIB
    assert least < added < least + 30_000_000


def test_the_bound_of_speed() -> None:
    """10 GB/s over the weights and one token's K and V; nothing held makes it faster."""
    shape = shape_of("gpt-j-6B")
    weights = shape.option("q4_0")
    expected = 10e9 / (weights.read_bytes + 448 * MIB // 1024)
    budget = Budget(0, 10e9)
    assert decode_tokens_per_s(shape, weights, whole("f16"), budget) == pytest.approx(expected)
    assert plan().tokens_per_s == pytest.approx(2 * expected)
    assert decode_tokens_per_s(shape, weights, whole("f16"), Budget(0)) is None


def test_the_bound_of_a_batch_is_that_of_its_steps() -> None:
    """Sequences that step together share the reading of the weights."""
    shape = shape_of("gpt-j-6B")
    budget = Budget(64 * GIB, 10e9)
    one, eight = (
        Planner(shape, Sizes(512, n), budget, beside=Beside(batch=True)).plan(
            shape.option("q4_0"), whole("f16"), "mmap"
        )
        for n in (1, 8)
    )
    assert one.tokens_per_s is not None and eight.tokens_per_s is not None
    assert 7.9 * one.tokens_per_s < eight.tokens_per_s < 8 * one.tokens_per_s


@pytest.mark.parametrize(
    ("n_bytes", "rate"),
    [(5, 90e9), (10, 90e9), (15, 90e9), (40, 50e9), (99, 50e9), (150, 30e9), (10**9, 30e9)],
)
def test_a_small_model_is_bound_by_the_caches(n_bytes: int, rate: float) -> None:
    """The rate of the next smaller size; 30 is what a busy moment made slower than 40."""
    cached = ((10, 90e9), (20, 90e9), (30, 40e9), (40, 50e9), (100, 20e9))
    assert Budget(0, 30e9, cached=cached).rate(n_bytes) == rate
    assert Budget(0, None, cached=cached).rate(n_bytes) is None


# ---- the choice


def choice(name: str, gib: float, wish: Wish | None = None, n_ctx: int = 2048) -> Plan:
    budget = Budget(int(gib * GIB), 20e9, X86)
    return choose(Planner(shape_of(name), Sizes(n_ctx), budget), wish or Wish())


@pytest.mark.parametrize(
    ("name", "gib", "type", "spec", "load"),
    [
        ("gpt-neox-20b", 24, "q8_0", "f16", "mmap"),
        ("gpt-neox-20b", 13, "q4_0", "f16:1024,q8_0:2048", "mmap"),
        ("gpt-j-6B", 24, "q8_0", "f16", "mmap"),
        ("gpt-j-6B", 7.5, "q8_0", "f16", "mmap"),
        ("gpt-j-6B", 6, "q6_k", "f16", "mmap"),
        ("gpt-j-6B", 4, "q4_0", "f16:512,q8_0:2048", "mmap"),
    ],
)  # fmt: skip
def test_the_finest_that_fits_is_chosen(
    name: str, gib: float, type: str, spec: str, load: str
) -> None:
    best = choice(name, gib)
    assert (best.weights.type, best.schedule.spec, best.load) == (type, spec, load)
    assert best.fits
    assert best.schedule.n_ctx == 2048
    assert len(best.reasons) == 3


def test_copies_are_chosen_where_there_is_room() -> None:
    asked = Wish(type="q4_0")
    assert choice("gpt-j-6B", 16, asked).load == "fast"
    tight = choice("gpt-j-6B", 4.5, asked)
    assert (tight.load, tight.fits) == ("mmap", True)
    assert "would fill the memory" in tight.reasons[2]
    assert choice("gpt-j-6B", 16, Wish(type="q4_0", load="locked")).load == "locked"
    assert choice("gpt-j-6B", 16, Wish(type="q6_k")).load == "mmap"


def test_what_is_asked_for_is_kept() -> None:
    wish = Wish("q5_0", whole("q8_0"), "direct")
    best = choice("gpt-j-6B", 16, wish)
    assert (best.weights.type, best.schedule, best.load) == ("q5_0", wish.schedule, "direct")
    assert best.reasons == (
        "type q5_0: as requested",
        "kv q8_0: as requested",
        "load direct: as requested",
    )


def test_nothing_fits() -> None:
    none = choice("gpt-neox-20b", 4)
    assert not none.fits
    assert none.weights.type == "q3_k_m"
    assert "even without a cache" in none.reasons[0]
    crowded = choice("gpt-j-6B", 3.4, Wish("q4_0", whole("f16")))
    assert not crowded.fits
    assert "lower --context" in crowded.reasons[0]


def test_the_context_is_never_cut_to_make_it_fit() -> None:
    """BLOOM's smallest weights leave room for 256 tokens of a Q4_0 cache, not for 2048."""
    short = choice("bloom-7b1", 4)
    assert not short.fits
    assert short.schedule.n_ctx == 2048
    assert choice("bloom-7b1", 4, n_ctx=256).fits


def test_auto_uses_what_the_rest_leaves_to_the_byte() -> None:
    shape = shape_of("gpt-j-6B")
    weights = shape.option("q4_0")

    def auto(limit: int, n_seq: int = 1) -> Plan | None:
        planner = Planner(shape, Sizes(2048, n_seq), Budget(limit))
        schedule = automatic_schedule(planner, weights, "mmap")
        return planner.plan(weights, schedule, "mmap") if schedule else None

    for n_seq in (1, 3):
        planner = Planner(shape, Sizes(2048, n_seq), Budget(0))
        for kind in ("f16", "q8_0", "q4_0"):
            exact = planner.plan(weights, whole(kind), "mmap")
            enough, short = auto(exact.total, n_seq), auto(exact.total - n_seq, n_seq)
            assert enough is not None and enough.schedule.stages[-1].name == kind
            assert enough.total <= exact.total
            assert short is None if kind == "q4_0" else short is not None
            assert short is None or short.schedule.stages[-1].name != kind


def test_a_fine_cache_comes_before_finer_weights() -> None:
    """In 4.1 GiB, Q4_K_M would leave room for a cache of 5 bits, Q4_0 for a Q8_0 one."""
    best = choice("gpt-j-6B", 4.1)
    assert (best.weights.type, best.schedule.stages[-1].type_k) == ("q4_0", "q8_0")
    coarse = choice("gpt-j-6B", 4.1, Wish(type="q4_k_m"))
    assert coarse.fits
    assert coarse.schedule.stages[-1].name == "q5_1/q4_0"


def test_more_memory_never_chooses_less() -> None:
    order = ["q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]
    chosen = [choice("gpt-j-6B", gib / 2) for gib in range(6, 20)]
    ranks = [order.index(p.weights.type) for p in chosen if p.fits]
    assert ranks == sorted(ranks)
    assert ranks[-1] == 5


def test_the_table_has_every_type() -> None:
    shape = shape_of("gpt-j-6B")
    planner = Planner(shape, Sizes(2048), Budget(8 * GIB))
    table = type_table(planner, choose(planner, Wish()))
    assert [p.weights.type for p in table] == [o.type for o in shape.options]
    assert [p.total for p in table] == sorted((p.total for p in table), reverse=True)


def test_heads_that_32_does_not_divide_keep_f16() -> None:
    odd = replace(shape_of("gpt-j-6B"), head_dim=80, n_head_kv=16)
    best = choose(Planner(odd, Sizes(2048), Budget(4 * GIB)), Wish(type="q4_0"))
    assert {s.type_k for s in best.schedule.stages} == {"f16"}
    assert kv_model(odd).geometry.head_k == 80
