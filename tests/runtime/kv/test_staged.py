"""A KV cache whose precision steps down, against one that had its types from the start."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from comparison import compare_logits
from numpy.typing import NDArray
from random_models import FAMILIES, random_model

import infer_os.runtime.kv.staged as staged_module
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import Interrupted, ModelLoadError, StateError
from infer_os.native.model import LlamaModel
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.plan import shapes
from infer_os.runtime.settings import EngineSettings, SamplingSettings

N_CTX = 192
TOKENS = [int(t) for t in np.random.default_rng(5).integers(1, 290, N_CTX)]
SPEC = "f16:64,q8_0:128,q4_0:192"

GetModel = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> GetModel:
    made: dict[tuple[str, int], Path] = {}

    def get(family: str, head: int) -> Path:
        if (family, head) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{head}")
            made[family, head] = random_model(folder, family, head)
        return made[family, head]

    return get


@pytest.fixture(scope="module")
def model(random: GetModel) -> Path:
    return random("gptj", 64)


def open_engine(path: Path, kv: str = "", budget: int = 0, n_ctx: int = N_CTX) -> LlamaEngine:
    return LlamaEngine(path, EngineSettings(context=n_ctx, threads=1, kv=kv, kv_budget=budget))


def run(
    engine: LlamaEngine, tokens: Sequence[int] = TOKENS, prompt: int = 40
) -> NDArray[np.float32]:
    """Logits after the prompt and after every later token."""
    engine.feed(tokens[:prompt])
    rows = [engine.context.logits().copy()]
    for token in tokens[prompt:]:
        engine.step(token)
        rows.append(engine.context.logits().copy())
    return np.stack(rows)


def plain(
    path: Path, kind: str, tokens: Sequence[int] = TOKENS, prompt: int = 40
) -> NDArray[np.float32]:
    """The same with a bare context that has its type from the start."""
    params = ContextParams(n_ctx=N_CTX, n_threads=1, type_k=kind, type_v=kind)
    with LlamaModel(path, native=True) as loaded, Context(loaded, params) as context:
        context.decode(tokens[:prompt], 0)
        rows = [context.logits().copy()]
        for position, token in enumerate(tokens[prompt:], prompt):
            context.decode_one(token, position)
            rows.append(context.logits().copy())
        return np.stack(rows)


# ---- what it must show


@pytest.mark.parametrize("head", [64, 96, 128, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_stage_is_like_a_cache_of_its_type(random: GetModel, family: str, head: int) -> None:
    path = random(family, head)
    with open_engine(path, SPEC) as engine:
        staged = run(engine)
        assert engine.take_notes() == ()
    exact = plain(path, "f16")
    assert np.array_equal(staged[:25], exact[:25])
    for kind, rows in (("q8_0", slice(25, 89)), ("q4_0", slice(89, None))):
        direct = plain(path, kind)
        error = compare_logits(exact[rows], direct[rows]).kl
        assert error > 1e-9
        # as near to the direct cache, and as near to F16, as the type's own error allows
        assert compare_logits(direct[rows], staged[rows]).kl < 1.5 * error
        assert compare_logits(exact[rows], staged[rows]).kl < 1.5 * error


@pytest.mark.parametrize("kind", ["f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_one_stage_is_bit_identical(model: Path, kind: str) -> None:
    with open_engine(model, kind) as engine:
        assert np.array_equal(run(engine), plain(model, kind))
        assert engine.kv.schedule == kind


def test_no_option_is_f16(model: Path) -> None:
    with open_engine(model) as engine:
        assert np.array_equal(run(engine), plain(model, "f16"))


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_types(random: GetModel, family: str) -> None:
    path = random(family, 64)
    exact = plain(path, "f16")
    with open_engine(path, "f16:64,q8_0/q4_0") as engine:
        staged = run(engine)
        assert engine.kv.types == "q8_0/q4_0"
    error = compare_logits(exact[25:], plain(path, "q4_0")[25:]).kl
    assert 0 < compare_logits(exact[25:], staged[25:]).kl < error


def test_stages_as_tokens_come(model: Path) -> None:
    with open_engine(model, SPEC) as engine:
        engine.feed(TOKENS[:10])
        seen = []
        for token in TOKENS[10:]:
            engine.step(token)
            seen.append((engine.kv.n_tokens, engine.kv.stage, engine.kv.types))
        ends = [s for s, after in pairwise(seen) if s[1] != after[1]]
        assert ends == [(64, 1, "f16"), (128, 2, "q8_0")]
        assert seen[-1] == (192, 3, "q4_0")
        assert list(engine.tokens) == TOKENS
        assert engine._cache.bytes.alive == engine.kv.n_bytes < engine.kv.peak_bytes


# ---- prompts


def test_a_long_prompt_is_computed_in_f16(model: Path) -> None:
    exact = plain(model, "f16", prompt=150)
    with open_engine(model, SPEC) as engine:
        engine.feed(TOKENS[:150])
        assert engine.kv.types == "f16"
        assert np.array_equal(engine.context.logits(), exact[0])
        engine.step(TOKENS[150])
        assert (engine.kv.types, engine.kv.stage) == ("q4_0", 3)
        staged = engine.context.logits().copy()
        assert engine.take_notes() == ()
    error = compare_logits(exact[1:2], plain(model, "q4_0", prompt=150)[1:2]).kl
    assert compare_logits(exact[1:2], staged[None]).kl < 2 * error


def test_a_budget_may_forbid_that(random: GetModel) -> None:
    path = random("gpt2", 128)
    row = 2 * 2 * 256
    budget = 768 * row * 34 // 32 + 300 * row * 34 // 32
    with open_engine(path, budget=budget, n_ctx=700) as engine:
        assert engine.kv.schedule == "f16:256,q8_0:700"
        engine.feed([TOKENS[i % N_CTX] for i in range(600)])
        assert engine.kv.types == "q8_0"
        assert "no room for 600 tokens in f16" in engine.take_notes()[0]
        assert engine.take_notes() == ()
        assert engine.kv.peak_bytes <= budget


# ---- trim, reuse, interruption


def test_prefix_is_reused_across_stages(model: Path) -> None:
    with open_engine(model, SPEC) as engine:
        run(engine, TOKENS[:100])
        assert engine.kv.types == "q8_0"
        assert engine.feed([*TOKENS[:90], 7, 8]) == 2
        assert engine.kv.types == "q8_0"
        got = engine.context.logits().copy()
        assert engine.feed([*TOKENS[:90], *TOKENS[:60]]) == 60
        assert engine.kv.types == "q4_0"
        assert list(engine.tokens) == [*TOKENS[:90], *TOKENS[:60]]
    expected = plain(model, "q8_0", [*TOKENS[:90], 7, 8], 92)
    exact = plain(model, "f16", [*TOKENS[:90], 7, 8], 92)
    error = compare_logits(exact, expected).kl
    assert compare_logits(exact, got[None]).kl < 3 * error


def test_a_new_prompt_begins_in_full_precision(model: Path) -> None:
    with open_engine(model, SPEC) as engine:
        run(engine)
        assert engine.kv.types == "q4_0"
        other = [t + 1 for t in TOKENS[:50]]
        assert engine.feed(other) == 50
        assert engine.kv.types == "f16"
        assert np.array_equal(engine.context.logits(), plain(model, "f16", other, 50)[0])


def test_a_short_prefix_in_a_coarse_type_is_computed_again(model: Path) -> None:
    with open_engine(model, SPEC) as engine:
        run(engine)
        assert engine.feed([*TOKENS[:5], *range(1, 60)]) == 64
        assert engine.kv.types == "f16"
        run(engine)
        assert engine.feed([*TOKENS[:20], *range(1, 40)]) == 39
        assert engine.kv.types == "q4_0"


def test_forgetting(model: Path) -> None:
    with open_engine(model, SPEC) as engine:
        first = run(engine)
        engine.forget()
        assert np.array_equal(run(engine), first)


def test_steps_past_the_context(model: Path) -> None:
    """The cache has more cells than were asked for; nothing breaks in them."""
    with open_engine(model, SPEC) as engine:
        run(engine)
        engine.step(5)
        assert (len(engine.tokens), engine.kv.types) == (193, "q4_0")


@pytest.mark.parametrize("moment", ["export_rows", "import_rows"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelLoadError])
def test_a_change_of_stage_cut_short(
    model: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: type[BaseException]
) -> None:
    with open_engine(model, SPEC) as engine:
        expected = run(engine, TOKENS[:80])
        engine.forget()
        engine.feed(TOKENS[:64])

        def fail(*_arguments: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Context, moment, fail)
            with pytest.raises(error):
                engine.step(TOKENS[64])
        assert list(engine.tokens) == []
        assert engine._cache.bytes.alive == 0
        assert np.array_equal(run(engine, TOKENS[:80]), expected)


def test_no_context_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_engine(model, SPEC) as engine:
        engine.feed(TOKENS[:64])

        def fail(*_arguments: object, **_more: object) -> None:
            raise ModelLoadError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(staged_module, "Context", fail)
            with pytest.raises(ModelLoadError):
                engine.step(TOKENS[64])
            with pytest.raises(StateError, match="cache is gone"):
                _ = engine.context
        engine.feed(TOKENS[:10])
        assert engine.kv.types == "f16"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt, "was interrupted"),
        (Interrupted, "was interrupted"),
        (ModelLoadError, "could not create"),
    ],
)
def test_an_engine_without_a_context_can_be_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], words: str
) -> None:
    with open_engine(model, SPEC) as engine:
        engine.feed(TOKENS[:64])
        sampler = engine.new_sampler(SamplingSettings(temperature=0))

        def fail(*_arguments: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Context, "export_rows", fail)
            with pytest.raises(error):
                engine.step(TOKENS[64])
        assert (engine.kv.n_bytes, engine.kv.n_tokens, engine.kv.up_to) == (0, 0, 0)
        assert (engine.memory().kv, engine.memory().logits) == (0, 0)
        assert engine.memory().planned > 0
        with pytest.raises(StateError, match=words):
            engine.sample(sampler)
        sampler.close()
        engine.step(TOKENS[0])
        assert engine.memory().kv == engine.kv.n_bytes > 0


def test_a_failed_conversion_leaves_no_bytes_counted(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise StateError("refused")

    with open_engine(model, "f16:64,q8_0") as engine:
        engine.feed(TOKENS[:64])
        monkeypatch.setattr(staged_module.StagedCache, "convert", fail)
        engine.step(TOKENS[64])
        assert "computed again" in engine.take_notes()[0]
        assert engine._cache.bytes.alive == engine.kv.n_bytes


# ---- layouts that differ


@pytest.mark.parametrize("at", [0, 12, 20])
def test_another_layout_is_computed_again(
    model: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    export = Context.export_rows

    def spoiled(self: Context, first: int, stop: int) -> NDArray[np.uint8]:
        state = export(self, first, stop)
        state[at] ^= 1
        return state

    with open_engine(model, "f16:64,q8_0") as engine:
        monkeypatch.setattr(Context, "export_rows", spoiled)
        staged = run(engine, TOKENS[:100])
        (note,) = engine.take_notes()
        assert "64 tokens held were computed again" in note
        assert engine._cache.bytes.alive == engine.kv.n_bytes
    direct = plain(model, "q8_0", TOKENS[:100])
    exact = plain(model, "f16", TOKENS[:100])
    error = compare_logits(exact[25:], direct[25:]).kl
    assert compare_logits(direct[25:], staged[25:]).kl < error


def test_refused_rows_are_computed_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Context, _state: object) -> None:
        raise StateError("llama.cpp refuses a saved KV state")

    with open_engine(model, "f16:64,q8_0") as engine:
        monkeypatch.setattr(Context, "import_rows", refuse)
        run(engine, TOKENS[:100])
        assert "refuses" in engine.take_notes()[0]


def test_llama_refuses_another_type(model: Path) -> None:
    with LlamaModel(model, native=True) as loaded:
        params = ContextParams(n_ctx=64, n_threads=1, window=True)
        with Context(loaded, params) as context:
            context.decode(TOKENS[:10], 0)
            state = context.export_rows(0, 10)
        other = dataclasses.replace(params, type_k="q8_0")
        with Context(loaded, other) as context, pytest.raises(StateError, match="refuses"):
            context.import_rows(state)


# ---- rotation


def test_switch_is_restored(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    switch = "LLAMA_ATTN_ROT_DISABLE"
    params = ContextParams(n_ctx=64, n_threads=1, type_k="q8_0")
    with LlamaModel(model, native=True) as loaded:
        for before, rotates in (
            (None, True),
            ("0", True),
            ("x", True),
            ("1", False),
            (" 01", False),
        ):
            if before is not None:
                monkeypatch.setenv(switch, before)
            for wanted in (True, False):
                with Context(loaded, dataclasses.replace(params, rotate=wanted)) as context:
                    assert context.rotates == (wanted and rotates)
                assert os.environ.get(switch) == before


def test_folded_rotation_switches_llamas_off(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ContextParams] = []

    def spy(loaded: LlamaModel, params: ContextParams) -> Context:
        made.append(params)
        return Context(loaded, params)

    monkeypatch.setattr(shapes, "ROTATION_KEY", "general.architecture")
    monkeypatch.setattr(staged_module, "Context", spy)
    with open_engine(model, SPEC) as engine:
        staged = run(engine)
    assert [params.rotate for params in made] == [False] * 3
    exact = plain(model, "f16")
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    direct = plain(model, "q4_0")
    error = compare_logits(exact[89:], direct[89:]).kl
    assert compare_logits(direct[89:], staged[89:]).kl < 1.5 * error


# ---- bytes


class Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated() -> int:
    """Bytes that malloc has handed out and not got back."""
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Mallinfo
    info = function()
    return int(info.hblkhd + info.uordblks)


@dataclasses.dataclass
class Seen:
    """What happened last, bytes that malloc holds, bytes that were counted."""

    what: str
    allocated: int
    counted: int


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Notes taken whenever a cache or rows come or go."""
    seen: list[Seen] = []
    caches: list[staged_module.StagedCache] = []

    def watch(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def watching(self, *arguments):  # type: ignore[no-untyped-def]
            result = function(self, *arguments)
            if name == "_open":
                caches[:] = [self]
            seen.append(Seen(name, allocated(), caches[0].bytes.alive))
            return result

        monkeypatch.setattr(owner, name, watching)

    watch(Context, "export_rows")
    watch(Context, "import_rows")
    watch(staged_module.StagedCache, "convert")
    watch(staged_module.StagedCache, "_open")
    return seen


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize(("share", "stages"), [(0.30, 1), (0.51, 2), (0.75, 2)])
def test_budget_is_held_at_every_step(
    tmp_path: Path, watched: list[Seen], caplog: pytest.LogCaptureFixture, share: float, stages: int
) -> None:
    path = random_model(tmp_path, "gpt2", 256, n_layer=6)
    n_ctx = 1024
    budget = int(n_ctx * 6 * 2 * 512 * 2 * share)
    tokens = [TOKENS[i % N_CTX] for i in range(n_ctx)]
    caplog.set_level("DEBUG", "infer_os.llama")
    with open_engine(path, budget=budget, n_ctx=n_ctx) as engine:
        for length in range(200, n_ctx, 8):
            engine.feed(tokens[:length])
        cache = engine._cache
        assert engine.kv.stage == engine.kv.n_stages == len(cache.schedule.stages) == stages
        assert cache.bytes.peak <= min(budget, cache.schedule.peak_bytes(cache._kv))
        assert cache.bytes.alive == engine.kv.n_bytes
        # llama.cpp's own word on the size of each stage's cache
        said = re.findall(r"KV buffer size = +([0-9.]+) MiB", caplog.text)
        sizes = [stage.n_bytes(cache._kv) for stage in cache.schedule.stages]
        assert [float(text) for text in said] == [pytest.approx(n / 2**20, abs=0.01) for n in sizes]
    # malloc's word on the rows in between: what comes and goes is what was counted
    calls = {
        what: sum(seen.what == what for seen in watched) for what in ("export_rows", "import_rows")
    }
    assert all(calls.values()) == (stages > 1)
    for before, after in pairwise(watched):
        # but not while a context is made or decodes for the first time
        if after.what == "_open" or (after.what == "export_rows" and before.what != "convert"):
            continue
        grown = after.allocated - before.allocated
        assert abs(grown - (after.counted - before.counted)) < 64 << 10


def test_bad_options(model: Path) -> None:
    for options, complaint in (
        ({"kv": "q9"}, "unknown type"),
        ({"kv": "f16:9,q8_0:9"}, "out of order"),
        ({"kv_budget": 1000}, "too small for one token"),
        ({"kv": "f16", "kv_budget": 1 << 30}, "give one of them"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            LlamaEngine(model, EngineSettings(context=64, threads=1, **options))  # type: ignore[arg-type]


def test_a_capped_context_is_noted(model: Path) -> None:
    with open_engine(model, "f16:64,q8_0:100") as engine:
        assert engine.n_ctx == 100
        assert any("ends at 100" in note for note in engine.info.notes)
