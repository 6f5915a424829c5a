"""Generation on a real tiny model, against a plain loop written with llama_cpp alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from helpers import BUNDLED, PARALLEL, Converter

from infer_os.native.backend import SWITCHED_OFF, kernels_for
from infer_os.native.layouts import llama_layouts
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import PromptError
from infer_os.runtime.fake import END, FakeEngine, saying
from infer_os.runtime.generate import (
    Completion,
    FinishReason,
    Generation,
    PlainSource,
    complete,
    stream_text,
    stream_tokens,
)
from infer_os.runtime.sampler import LlamaSampler
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
PROMPT = "The quick brown fox"


def plain_greedy(gguf: Path, prompt: list[int], n: int) -> list[int]:
    """llama_decode and argmax, nothing else."""
    params = llama_cpp.llama_model_default_params()
    # by default llama.cpp takes layouts that may end the process
    params.use_extra_bufts = bool(llama_layouts().types)
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 128, 1, 1
    # a registered backend of ours would take part in any context
    with kernels_for(SWITCHED_OFF, params):
        context = llama_cpp.llama_init_from_model(model, params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    drawn: list[int] = []
    batch = (llama_cpp.llama_token * len(prompt))(*prompt)
    count = len(prompt)
    for _ in range(n):
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(batch, count)) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (n_vocab,))
        drawn.append(int(logits.argmax()))
        batch, count = (llama_cpp.llama_token * 1)(drawn[-1]), 1
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return drawn


def run(
    engine: LlamaEngine, sampling: SamplingSettings = GREEDY, prompt: str = PROMPT, **stop: object
) -> Completion:
    settings = StopSettings(**{"max_tokens": 32, **stop})  # type: ignore[arg-type]
    return complete(engine, engine.vocab.tokenize(prompt), sampling, settings)


@pytest.mark.parametrize("folder", [PARALLEL, *BUNDLED], ids=lambda path: path.name)
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_greedy_equals_a_plain_loop(converted: Converter, folder: Path, kind: str) -> None:
    gguf = converted(folder, kind)
    draw = np.random.default_rng(2)
    seen: set[int] = set()
    with LlamaEngine(gguf, EngineSettings(context=128, threads=1, native=False)) as engine:
        end = engine.vocab.eos
        for _ in range(12):
            tokens = draw.integers(1, 290, int(draw.integers(1, 30))).tolist()
            expected = plain_greedy(gguf, tokens, 20)
            expected = expected[: expected.index(end) + 1] if end in expected else expected
            assert complete(engine, tokens, GREEDY, StopSettings(20)).tokens == tuple(expected)
            seen.update(expected)
    if folder == PARALLEL:
        assert len(seen) > 5


def test_the_same_seed_gives_the_same_text_twice(engine: LlamaEngine) -> None:
    results = {
        seed: [run(engine, SamplingSettings(seed=seed)).text for _ in range(2)] for seed in range(4)
    }
    assert all(first == second for first, second in results.values())
    assert len({first for first, _ in results.values()}) == 4


def test_without_a_seed_texts_differ(engine: LlamaEngine) -> None:
    assert len({run(engine, SamplingSettings(temperature=1.5)).text for _ in range(3)}) > 1


def test_the_tokens_are_the_text(engine: LlamaEngine) -> None:
    result = run(engine, SamplingSettings(seed=5))
    data = engine.vocab.detokenize(list(result.tokens))
    assert result.text == data.decode("utf-8", "replace")


def test_max_tokens(engine: LlamaEngine) -> None:
    for n in (1, 2, 7):
        result = run(engine, max_tokens=n)
        assert len(result.tokens) == n
        assert result.finish_reason is FinishReason.LENGTH
        assert result.timings.completion_tokens == n


def test_a_stop_string(engine: LlamaEngine) -> None:
    sampling = SamplingSettings(seed=5)
    whole = run(engine, sampling, max_tokens=32)
    stop = whole.text[12:14]
    assert whole.text.index(stop) > 0
    cut = run(engine, sampling, max_tokens=32, strings=(stop,))
    assert cut.finish_reason is FinishReason.STOP
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.tokens) < len(whole.tokens)


def test_a_full_context(converted: Converter) -> None:
    with LlamaEngine(converted(), EngineSettings(context=16, threads=1)) as engine:
        tokens = engine.vocab.tokenize(PROMPT)[:10]
        result = complete(engine, tokens, GREEDY, StopSettings(100))
        assert result.finish_reason is FinishReason.CONTEXT
        assert len(result.tokens) == 16 - 10 + 1
        full = complete(engine, (tokens * 2)[:16], GREEDY, StopSettings(100))
        assert (len(full.tokens), full.finish_reason) == (1, FinishReason.CONTEXT)


def test_an_empty_prompt(engine: LlamaEngine) -> None:
    with pytest.raises(PromptError):
        run(engine, prompt="")


def test_the_prompt_is_reused(engine: LlamaEngine) -> None:
    first = run(engine)
    again = run(engine)
    n_prompt = len(engine.vocab.tokenize(PROMPT))
    assert (first.timings.prompt_tokens, first.timings.computed_tokens) == (n_prompt, n_prompt)
    assert (again.timings.prompt_tokens, again.timings.computed_tokens) == (n_prompt, 1)
    assert first.tokens == again.tokens


def test_timings_are_filled(engine: LlamaEngine) -> None:
    t = run(engine).timings
    assert 0 < t.prefill_s <= t.first_token_s
    assert t.decode_s > 0
    assert t.decode_tokens_per_s == pytest.approx((t.completion_tokens - 1) / t.decode_s)
    assert t.prefill_tokens_per_s == pytest.approx(t.computed_tokens / t.prefill_s)


# ---- every sampler setting does something


def draws(engine: LlamaEngine, sampling: SamplingSettings, n: int = 300) -> list[int]:
    """Many draws from the logits after one prompt."""
    engine.feed(engine.vocab.tokenize(PROMPT))
    sampler = engine.new_sampler(sampling)
    try:
        return [engine.sample(sampler) for _ in range(n)]
    finally:
        sampler.close()


def probabilities(engine: LlamaEngine, temperature: float = 1.0) -> np.ndarray:
    engine.feed(engine.vocab.tokenize(PROMPT))
    logits = engine.context.logits().astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}


def test_temperature_zero_takes_the_likeliest(engine: LlamaEngine) -> None:
    best = int(probabilities(engine).argmax())
    assert set(draws(engine, GREEDY, 5)) == {best}


def test_temperature_flattens(engine: LlamaEngine) -> None:
    counts = [
        len(set(draws(engine, SamplingSettings(temperature=t, **OPEN)))) for t in (0.2, 1.0, 4.0)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_draws_follow_the_softmax(engine: LlamaEngine) -> None:
    p = probabilities(engine, 0.7)
    got = draws(engine, SamplingSettings(temperature=0.7, **OPEN), 4000)
    share = np.bincount(got, minlength=len(p)) / len(got)
    assert np.abs(share - p).max() < 0.04


def test_top_k_keeps_k(engine: LlamaEngine) -> None:
    best = set(np.argsort(-probabilities(engine))[:3].tolist())
    drawn = draws(engine, SamplingSettings(temperature=5.0, **{**OPEN, "top_k": 3}))
    assert set(drawn) == best


def test_top_p_keeps_the_nucleus(engine: LlamaEngine) -> None:
    p = probabilities(engine)
    order = np.argsort(-p)
    kept = order[: int((np.cumsum(p[order]) < 0.5).sum()) + 1]
    drawn = draws(engine, SamplingSettings(temperature=1.0, **{**OPEN, "top_p": 0.5}), 2000)
    assert set(drawn) <= set(kept.tolist())
    assert len(set(draws(engine, SamplingSettings(temperature=1.0, **OPEN), 2000))) > len(kept)


def test_min_p_cuts_the_tail(engine: LlamaEngine) -> None:
    p = probabilities(engine)
    kept = set(np.flatnonzero(p >= 0.3 * p.max()).tolist())
    drawn = draws(engine, SamplingSettings(temperature=1.0, **{**OPEN, "min_p": 0.3}), 2000)
    assert set(drawn) <= kept
    assert len(set(draws(engine, SamplingSettings(temperature=1.0, **OPEN), 2000))) > len(kept)


def test_filters_come_before_the_temperature(engine: LlamaEngine) -> None:
    p = probabilities(engine)
    kept = set(np.flatnonzero(p >= 0.3 * p.max()).tolist())
    drawn = draws(engine, SamplingSettings(temperature=50.0, **{**OPEN, "min_p": 0.3}), 500)
    assert set(drawn) <= kept


def test_the_repeat_penalty_counts_drawn_tokens(engine: LlamaEngine) -> None:
    settings = SamplingSettings(temperature=0, repeat_penalty=1000.0)
    drawn = draws(engine, settings, 10)
    assert len(set(drawn)) == 10


def test_the_repeat_penalty_counts_the_prompt(engine: LlamaEngine) -> None:
    p = probabilities(engine)
    best = int(p.argmax())
    for remembered, expected in (([], True), ([best], False)):
        sampler = engine.new_sampler(SamplingSettings(temperature=0, repeat_penalty=1000.0))
        sampler.remember(remembered)
        assert (engine.sample(sampler) == best) is expected
        sampler.close()


def test_generate_tells_the_penalty_of_the_prompt() -> None:
    engine = FakeEngine(saying("x"))
    sampler = engine.new_sampler(GREEDY)
    list(stream_tokens(engine, [1, 2, 3], PlainSource(engine, sampler), 5, Generation()))
    assert sampler.remembered == [1, 2, 3]


def test_the_repeat_penalty_forgets_beyond_its_window(engine: LlamaEngine) -> None:
    best = int(probabilities(engine).argmax())
    settings = SamplingSettings(temperature=0, repeat_penalty=1000.0, repeat_last_n=2)
    sampler = engine.new_sampler(settings)
    others = [t for t in range(10, 14) if t != best]
    sampler.remember([best, *others])
    assert engine.sample(sampler) == best
    sampler.close()


def test_a_penalty_of_one_is_off(engine: LlamaEngine) -> None:
    assert len(set(draws(engine, SamplingSettings(temperature=0, repeat_penalty=1.0), 5))) == 1


def test_a_sampler_may_be_closed_twice(engine: LlamaEngine) -> None:
    sampler = LlamaSampler(SamplingSettings(), engine.vocab)
    sampler.close()
    sampler.close()


# ---- the loops above a scripted engine


def fake(reply: str, **stop: object) -> tuple[Completion, FakeEngine]:
    engine = FakeEngine(saying(reply))
    settings = StopSettings(**{"max_tokens": 50, **stop})  # type: ignore[arg-type]
    return complete(engine, engine.vocab.tokenize("prompt"), GREEDY, settings), engine


def test_the_models_end() -> None:
    result, _ = fake("hello")
    assert (result.text, result.finish_reason) == ("hello", FinishReason.END)
    assert result.tokens == (*b"hello", END)


def test_a_stop_string_ends_drawing() -> None:
    result, engine = fake("one\nUser: two", strings=("\nUser:",))
    assert (result.text, result.finish_reason) == ("one", FinishReason.STOP)
    assert len(engine.tokens) == len("prompt" + "one\nUser:") - 1


def test_what_was_held_back_comes_at_the_end() -> None:
    result, _ = fake("one\nUse", strings=("\nUser:",))
    assert result.text == "one\nUse"
    result, _ = fake("one\nUser", strings=("\nUser:",), max_tokens=6)
    assert (result.text, result.finish_reason) == ("one\nUs", FinishReason.LENGTH)


def test_a_character_that_the_limit_cuts() -> None:
    result, _ = fake("aé", max_tokens=2)
    assert result.text == "a\ufffd"


def test_a_full_context_of_a_scripted_engine() -> None:
    engine = FakeEngine(lambda tokens: 65, n_ctx=10)
    result = complete(engine, [1] * 8, GREEDY, StopSettings(50))
    assert (result.text, result.finish_reason) == ("AAA", FinishReason.CONTEXT)


def test_chunks_come_one_by_one() -> None:
    engine = FakeEngine(saying("abc"))
    stream = stream_text(engine, [1], GREEDY, StopSettings(), Generation())
    assert next(stream) == "a"
    assert len(engine.tokens) == 1
    assert list(stream) == ["b", "c"]


def test_an_interrupt_is_an_ordinary_end() -> None:
    def script(tokens: Sequence[int]) -> int:
        if len(tokens) > 4:
            raise KeyboardInterrupt
        return 65

    state = Generation()
    chunks = list(stream_text(FakeEngine(script), [1, 2], GREEDY, StopSettings(), state))
    assert chunks == ["A", "A", "A"]
    assert state.finish_reason is FinishReason.INTERRUPT


def test_the_sampler_is_closed_however_it_ends() -> None:
    closed = []

    class Watched(FakeEngine):
        def new_sampler(self, settings: SamplingSettings) -> object:  # type: ignore[override]
            sampler = super().new_sampler(settings)
            sampler.close = lambda: closed.append(1)  # type: ignore[method-assign]
            return sampler

    def failing(tokens: Sequence[int]) -> int:
        raise ValueError

    list(stream_text(Watched(saying("a")), [1], GREEDY, StopSettings(), Generation()))
    stream = stream_text(Watched(saying("abc")), [1], GREEDY, StopSettings(), Generation())
    next(stream)
    stream.close()
    with pytest.raises(ValueError):  # noqa: PT011
        list(stream_text(Watched(failing), [1], GREEDY, StopSettings(), Generation()))
    assert len(closed) == 3
