"""Greedy text with guesses is that without, token for token; so is a seeded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLED, REPOSITORY, Converter
from random_models import FAMILIES, random_model

from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import FinishReason, Generation, stream_text, token_source
from infer_os.runtime.open import open_engine
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings
from infer_os.runtime.speculative.costs import StepCosts
from infer_os.runtime.speculative.rounds import SpeculativeSource

GREEDY = SamplingSettings(temperature=0)
#: A cache whose batches round as single steps do, and one that changes twice on the way.
QUANTIZED, STAGED = "q8_0", "f16:150,q8_0:300,q4_0:1024"
#: Batches cost next to nothing: guesses are verified whether they are good or not.
CHEAP = {1: 1.0, 2: 1.0, 8: 1.0}


def settings(kv: str = QUANTIZED, draft: str = "none", n_ctx: int = 512) -> EngineSettings:
    return EngineSettings(context=n_ctx, threads=1, kv=kv, draft=draft)


def write(
    engine: LlamaEngine, prompt: list[int], n: int, sampling: SamplingSettings = GREEDY
) -> list[int]:
    state = Generation()
    for _ in stream_text(engine, prompt, sampling, StopSettings(n), state):
        pass
    return state.tokens


class Trusting:
    """An acceptance that nothing shakes."""

    rate = 0.9

    def rate_at(self, confidence: float) -> float:
        return self.rate

    def record(self, confidence: float, right: bool) -> None:
        pass


def eager(engine: LlamaEngine, *, model_only: bool = False) -> LlamaEngine:
    """Let every guess be verified: what is tested is that the text stays the same."""
    assert engine.speculation is not None
    if model_only:
        engine.speculation.runners = engine.speculation.runners[1:]
    for runner in engine.speculation.runners:
        runner.trials_left = 0
        runner.acceptance = Trusting()  # type: ignore[assignment]
    engine.speculation.steps = StepCosts(CHEAP)
    engine.speculation.steps.record = lambda n, seconds: None  # type: ignore[method-assign]
    return engine


@pytest.fixture(scope="module")
def bundled(converted: Converter) -> tuple[Path, Path]:
    names = {folder.name: folder for folder in BUNDLED}
    return converted(names["austen-6m"], "q8_0"), converted(names["austen-draft"], "q8_0")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    text = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text()
    return [text[at : at + 300] for at in range(0, 32_000, 8_000)]


@pytest.mark.parametrize("kv", [QUANTIZED, "q4_0", "q8_0/q4_0"])
@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_thousands_of_greedy_tokens(
    bundled: tuple[Path, Path], texts: list[str], kv: str, draft: str
) -> None:
    target, model = bundled
    with open_engine(target, settings(kv)) as plain:
        prompts = [plain.vocab.tokenize(text) for text in texts]
        expected = [write(plain, prompt, 300) for prompt in prompts]
    with open_engine(target, settings(kv, str(model) if draft == "model" else draft)) as engine:
        assert [write(eager(engine), prompt, 300) for prompt in prompts] == expected
        assert engine.speculation is not None
        report = engine.speculation.report()
        assert report.accepted > 300


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(temperature=0.7, repeat_penalty=1.2, seed=5),
        SamplingSettings(
            temperature=0.7, presence_penalty=0.2, frequency_penalty=0.1, dry_multiplier=0.8,
            no_repeat_ngram=5, min_tokens=100, top_n_sigma=3, typical_p=0.95, xtc_probability=0.2,
            dynatemp_range=0.2, logit_bias=((5, 1.0),), seed=5,
        ),
        SamplingSettings(temperature=0.7, mirostat=2, mirostat_tau=3, seed=5),
        SamplingSettings(temperature=0.7, adaptive_target=0.6, seed=5),
    ],
    ids=["penalty", "all", "mirostat", "adaptive"],
)  # fmt: skip
def test_a_seeded_text(
    bundled: tuple[Path, Path], texts: list[str], sampling: SamplingSettings
) -> None:
    target, model = bundled
    with open_engine(target, settings()) as plain:
        prompt = plain.vocab.tokenize(texts[0])
        expected = write(plain, prompt, 300, sampling)
        assert expected != write(plain, prompt, 300, replace(sampling, seed=6))
    with open_engine(target, settings(draft=str(model))) as engine:
        assert write(eager(engine), prompt, 300, sampling) == expected
        assert engine.speculation is not None
        assert engine.speculation.report().accepted > 50


@pytest.mark.parametrize("given", [{"mirostat": 2}, {"adaptive_target": 0.5}, {"top_k": 5}])
def test_draws_that_adapt_are_never_replaced_by_guesses(
    bundled: tuple[Path, Path], given: dict[str, float]
) -> None:
    sampling = SamplingSettings(**given)  # type: ignore[arg-type]
    with open_engine(bundled[0], settings(draft="lookup")) as engine:
        source = token_source(engine, sampling)
        assert isinstance(source, SpeculativeSource)
        kept = "SameDistribution" if "top_k" in given else "SameText"
        assert type(source._verifier).__name__ == kept
        source.close()


def test_through_the_stages_of_a_cache(bundled: tuple[Path, Path], texts: list[str]) -> None:
    target, model = bundled
    with open_engine(target, settings(STAGED, n_ctx=1024)) as plain:
        prompt = plain.vocab.tokenize(texts[1])
        expected = write(plain, prompt, 500)
        assert plain.kv.stage == 3
    with open_engine(target, settings(STAGED, str(model), 1024)) as engine:
        assert write(eager(engine), prompt, 500) == expected
        assert engine.kv.stage == 3
        assert engine.take_notes() == ()


@pytest.mark.parametrize("kind", ["f16", "bf16", "iq4_nl", "q4_k_m", "q5_0"])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingSettings(temperature=0, repeat_penalty=1.2),
        SamplingSettings(temperature=0.8, seed=3),
    ],
    ids=["greedy", "penalized", "seeded"],
)
def test_weights_that_our_kernels_leave_to_llama_cpp(
    converted: Converter, bundled: tuple[Path, Path], texts: list[str], kind: str,
    sampling: SamplingSettings,
) -> None:  # fmt: skip
    target = converted(next(folder for folder in BUNDLED if folder.name == "austen-6m"), kind)
    with open_engine(target, settings("f16")) as plain:
        prompts = [plain.vocab.tokenize(text) for text in texts[:2]]
        expected = [write(plain, prompt, 250, sampling) for prompt in prompts]
    with open_engine(target, settings("f16", str(bundled[1]))) as engine:
        assert engine.info.notes == ()
        assert [write(eager(engine), prompt, 250, sampling) for prompt in prompts] == expected
        assert engine.speculation is not None
        assert engine.speculation.report().accepted > 30


@pytest.mark.parametrize(("kind", "kv"), [("f16", "q8_0"), ("iq4_nl", "q8_0"), ("q8_0", "f16")])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingSettings(temperature=0.8, seed=3)])
def test_no_guess_where_a_batch_would_round_differently(
    converted: Converter, bundled: tuple[Path, Path], texts: list[str], kind: str, kv: str,
    sampling: SamplingSettings,
) -> None:  # fmt: skip
    target = converted(next(folder for folder in BUNDLED if folder.name == "austen-6m"), kind)
    stock = replace(settings(kv), native=False)
    with open_engine(target, stock) as plain:
        prompt = plain.vocab.tokenize(texts[0])[:40]
        expected = write(plain, prompt, 400, sampling)
    with open_engine(target, replace(stock, draft=str(bundled[1]))) as engine:
        (note,) = engine.info.notes
        assert "without guesses" in note
        assert write(eager(engine), prompt, 400, sampling) == expected
        assert engine.speculation is not None
        # a float cache is alike as long as it is short
        assert (engine.speculation.report().drafted > 0) == (kind == "q8_0")
        # drawn without a seed, only the distribution must stay
        write(engine, prompt, 100, SamplingSettings(temperature=0.8))
        assert engine.speculation.report().drafted > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("draft", ["itself", "unrelated", "lookup"])
def test_random_models_of_every_family(tmp_path: Path, family: str, draft: str) -> None:
    # F16 weights, which are computed column by column
    target = random_model(tmp_path / "target", family, 64)
    other = random_model(tmp_path / "other", family, 64, n_layer=1, seed=9)
    option = {"itself": str(target), "unrelated": str(other), "lookup": "lookup"}[draft]
    prompt = [int(token) for token in np.random.default_rng(2).integers(1, 290, 30)]
    with open_engine(target, settings("f16", n_ctx=256)) as plain:
        expected = write(plain, prompt, 200)
    with open_engine(target, settings("f16", option, 256)) as engine:
        assert write(eager(engine, model_only=draft != "lookup"), prompt, 200) == expected
        assert engine.speculation is not None
        report = engine.speculation.report()
        if draft == "itself":
            assert report.accepted > 100
        if draft == "unrelated":
            assert report.drafted > 100


def test_the_draft_is_trimmed_and_never_computes_twice(
    bundled: tuple[Path, Path], texts: list[str]
) -> None:
    target, model = bundled
    with open_engine(target, settings(draft=str(model))) as engine:
        assert engine.speculation is not None
        helper = engine.speculation.runners[1].drafter.engine  # type: ignore[attr-defined]
        computed = [0, 0]
        for i, part in enumerate((engine, helper)):
            decode = part.context.decode
            one = part.context.decode_one

            def count(tokens: list[int], at: int, *, i: int = i, decode=decode, **more) -> None:  # type: ignore[no-untyped-def]
                computed[i] += len(tokens)
                decode(tokens, at, **more)

            def count_one(token: int, at: int, *, i: int = i, one=one) -> None:  # type: ignore[no-untyped-def]
                computed[i] += 1
                one(token, at)

            part.context.decode, part.context.decode_one = count, count_one  # type: ignore[method-assign]
        prompt = engine.vocab.tokenize(texts[2])
        tokens = write(eager(engine), prompt, 200)
        report = engine.speculation.report()
        rounds = sum(drafter.rounds for drafter in report.drafters)
        steps = len(tokens) - 1 - report.accepted - rounds
        # every token of the text once, and the guesses that were wrong
        assert computed[0] == len(prompt) + rounds + report.drafted + steps
        made = report.drafters[1].drafted
        assert computed[1] <= len(prompt) + len(tokens) + 2 * made + 2 * rounds


def test_tokens_that_only_the_target_has(converted: Converter, tmp_path: Path) -> None:
    """They may stand in the prompt and in the text; the draft never sees them."""
    target = random_model(tmp_path / "target", "gpt_neox", 64)
    with open_engine(target, settings("q8_0", str(target), 128)) as engine:
        assert engine.speculation is not None
        drafter = engine.speculation.runners[1].drafter
        drafter._shared = drafter._shared.copy()  # type: ignore[attr-defined]
        drafter._shared[::2] = False  # type: ignore[attr-defined]
        drafter._barred = np.where(drafter._shared, 0, -np.inf).astype(np.float32)  # type: ignore[attr-defined]
        fed: set[int] = set()
        helper = drafter.engine  # type: ignore[attr-defined]
        feed, step = helper.feed, helper.step
        helper.feed = lambda tokens: fed.update(tokens) or feed(tokens)
        helper.step = lambda token: fed.add(token) or step(token)
        prompt = list(range(1, 40))
        got = write(eager(engine), prompt, 80)
        assert fed
        assert all(token % 2 for token in fed)
    with open_engine(target, settings("q8_0", n_ctx=128)) as plain:
        assert write(plain, prompt, 80) == got


def test_the_context_may_fill_up(bundled: tuple[Path, Path], texts: list[str]) -> None:
    target, model = bundled
    ends = []
    for draft in ("none", str(model)):
        with open_engine(target, settings(draft=draft, n_ctx=128)) as engine:
            if engine.speculation is not None:
                eager(engine)
            state = Generation()
            prompt = engine.vocab.tokenize(texts[0])[:60]
            for _ in stream_text(engine, prompt, GREEDY, StopSettings(500), state):
                pass
            ends.append((state.tokens, state.finish_reason))
    assert ends[0] == ends[1]
    assert ends[0][1] is FinishReason.CONTEXT


def test_a_stop_string_inside_a_round(bundled: tuple[Path, Path], texts: list[str]) -> None:
    target, model = bundled
    texts_out = []
    for draft in ("none", str(model)):
        with open_engine(target, settings(draft=draft)) as engine:
            if engine.speculation is not None:
                eager(engine)
            prompt = engine.vocab.tokenize(texts[3])
            stops = StopSettings(200, (" the", "\n"))
            first = "".join(stream_text(engine, prompt, GREEDY, stops, Generation()))
            # what was drawn beyond the stop does not disturb the next text
            texts_out.append((first, write(engine, prompt, 60)))
    assert texts_out[0] == texts_out[1]


# ---- bad input


def test_a_draft_that_is_larger_is_warned_of(bundled: tuple[Path, Path]) -> None:
    target, model = bundled
    with open_engine(model, settings(draft=str(target))) as engine:
        assert any("its guesses will not pay" in note for note in engine.info.notes)


def test_a_draft_must_fit_into_the_memory(bundled: tuple[Path, Path]) -> None:
    target, model = bundled
    with open_engine(target, settings()) as engine:
        assert engine.info.plan is not None
        alone = engine.info.plan.total
    limited = replace(settings(draft=str(model)), memory=alone + 500_000)
    with pytest.raises(MemoryShortage, match="draft") as failure:
        open_engine(target, limited)
    assert failure.value.plan is not None
    assert failure.value.plan.draft > 500_000
    open_engine(target, replace(limited, draft="none")).close()


def test_another_tokenizer(bundled: tuple[Path, Path], converted: Converter) -> None:
    with pytest.raises(SettingsError, match=r"token \d+ is .* there and .* here"):
        open_engine(bundled[0], settings(draft=str(converted())))


def test_a_source_is_plain_without_a_draft(bundled: tuple[Path, Path]) -> None:
    with open_engine(bundled[0], settings()) as engine:
        source = token_source(engine, GREEDY)
        assert type(source).__name__ == "PlainSource"
        source.close()
