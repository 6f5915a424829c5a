"""Each sampler against plain float64 arithmetic on random logits: alone, and in the usual order."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import BUNDLED, Converter
from numpy.typing import NDArray

from infer_os.native.model import Vocab
from infer_os.native.sampler_chain import DRY_BREAKERS, _candidates
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import complete
from infer_os.runtime.sampler import LlamaFilter, LlamaSampler
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

OPEN = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
SEEDS = range(6)
#: Upper quantile of a chance of 1e-4 (Wilson and Hilferty's approximation).
Z = 3.719

Logits = NDArray[np.float64]


@pytest.fixture(scope="module")
def model(converted: Converter) -> Any:
    path: Path = converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")
    with LlamaEngine(path, EngineSettings(context=256, threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def vocab(model: LlamaEngine) -> Vocab:
    return model.vocab


# ---- what the samplers are, in float64 and without a thought of speed


def softmax(logits: Logits) -> Logits:
    weights = np.exp(logits - logits[np.isfinite(logits)].max())
    return np.asarray(weights / weights.sum())


def penalized(logits: Logits, settings: SamplingSettings, text: Sequence[int]) -> Logits:
    window = text[-settings.repeat_last_n :] if settings.repeat_last_n else []
    for token, count in Counter(window).items():
        factor = settings.repeat_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        logits[token] -= count * settings.frequency_penalty + settings.presence_penalty
    return logits


def dried(logits: Logits, settings: SamplingSettings, text: Sequence[int], vocab: Vocab) -> Logits:
    window = list(text[-settings.dry_penalty_last_n :])
    breaking = [any(b.encode() in vocab.piece(token) for b in DRY_BREAKERS) for token in window]
    since = breaking[::-1].index(True) if any(breaking) else len(window)
    longest: dict[int, int] = {}
    for i, token in enumerate(window):
        n = 0
        while n < min(i, since) and window[i - 1 - n] == window[-1 - n]:
            n += 1
        if n >= settings.dry_allowed_length and not breaking[i]:
            longest[token] = max(longest.get(token, 0), n)
    for token, n in longest.items():
        further = n - settings.dry_allowed_length
        logits[token] -= settings.dry_multiplier * settings.dry_base**further
    return logits


def barred(
    logits: Logits, settings: SamplingSettings, prompt: Sequence[int], drawn: Sequence[int],
    ends: Sequence[int],
) -> Logits:  # fmt: skip
    n, text = settings.no_repeat_ngram, [*prompt, *drawn]
    if n:
        tail = text[len(text) - n + 1 :]
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == tail:
                logits[text[i + n - 1]] = -np.inf
    if len(drawn) < settings.min_tokens:
        logits[list(ends)] = -np.inf
    return logits


def keep(logits: Logits, kept: Any) -> Logits:
    left = np.full_like(logits, -np.inf)
    left[kept] = logits[kept]
    return left


def chosen(logits: Logits, settings: SamplingSettings, *, coin: bool) -> Logits:
    """The filters, in llama.cpp's order."""
    if settings.top_n_sigma:
        some = logits[np.isfinite(logits)]
        logits = keep(logits, logits >= some.max() - settings.top_n_sigma * some.std())
    if settings.top_k:
        logits = keep(logits, np.argsort(-logits, kind="stable")[: settings.top_k])
    if settings.typical_p < 1:
        p = softmax(logits)
        some = np.flatnonzero(p)
        entropy = -(p[some] * np.log(p[some])).sum()
        order = some[np.argsort(np.abs(-np.log(p[some]) - entropy), kind="stable")]
        logits = keep(logits, order[: int((np.cumsum(p[order]) <= settings.typical_p).sum()) + 1])
    if settings.top_p < 1:
        p = softmax(logits)
        order = np.argsort(-p, kind="stable")
        logits = keep(logits, order[: int((np.cumsum(p[order]) < settings.top_p).sum()) + 1])
    if settings.min_p:
        p = softmax(logits)
        logits = keep(logits, p >= settings.min_p * p.max())
    if settings.xtc_probability and coin:
        p = softmax(logits)
        above = np.flatnonzero(p >= settings.xtc_threshold)
        if len(above) > 1:
            kept = np.isfinite(logits)
            kept[above] = False
            kept[above[p[above].argmin()]] = True
            logits = keep(logits, kept)
    return logits


def tempered(logits: Logits, settings: SamplingSettings) -> Logits:
    temperature = settings.temperature
    if settings.dynatemp_range:
        p = softmax(logits)
        p = p[p > 0]
        low = max(0.001, temperature - settings.dynatemp_range)
        high = temperature + settings.dynatemp_range
        if len(p) < 2:
            return logits
        share = -(p * np.log(p)).sum() / np.log(len(p))
        temperature = low + (high - low) * share**settings.dynatemp_exponent
    return logits / temperature


def reference(
    row: NDArray[np.float32], settings: SamplingSettings, prompt: Sequence[int], vocab: Vocab,
    drawn: Sequence[int] = (), *, coin: bool = True,
) -> Logits:  # fmt: skip
    """The probabilities of the next token, (n_vocab,)."""
    logits, text = row.astype(np.float64), [*prompt, *drawn]
    logits = barred(logits, settings, prompt, drawn, vocab.ends())
    for token, bias in settings.logit_bias:
        logits[token] += bias
    logits = penalized(logits, settings, text)
    if settings.dry_multiplier:
        logits = dried(logits, settings, text, vocab)
    return softmax(tempered(chosen(logits, settings, coin=coin), settings))


def random_row(n_vocab: int, seed: int) -> NDArray[np.float32]:
    """Logits like a model's: a few tokens stand out."""
    random = np.random.default_rng(seed)
    row = random.normal(0, 1.5, n_vocab)
    row[random.choice(n_vocab, 20, replace=False)] += 4 + random.exponential(1, 20)
    return row.astype(np.float32)


def random_text(n_vocab: int, seed: int) -> list[int]:
    """Tokens that repeat themselves, in the likely part of the row as well."""
    random = np.random.default_rng((seed, 1))
    likely = np.argsort(-random_row(n_vocab, seed))[:12]
    passage = random.choice(likely, 9).tolist()
    other = random.integers(0, n_vocab, 20).tolist()
    few = random.choice(likely, 4).tolist()
    return [*other, *passage, *other[:5], *passage, *few, *passage[:6]]


#: One setting after the other, and all that go together.
ALONE: dict[str, dict[str, Any]] = {
    "repeat": {"repeat_penalty": 1.4, "repeat_last_n": 20},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "rewarding": {"presence_penalty": -1.5, "frequency_penalty": -0.5},
    "dry": {"dry_multiplier": 0.8},
    "dry-short": {
        "dry_multiplier": 1.5, "dry_base": 2.5, "dry_allowed_length": 1, "dry_penalty_last_n": 19,
    },
    "bigrams": {"no_repeat_ngram": 2},
    "unigrams": {"no_repeat_ngram": 1},
    "min-tokens": {"min_tokens": 3},
    "top-n-sigma": {"top_n_sigma": 1.2},
    "top-k": {"top_k": 9},
    "typical": {"typical_p": 0.6},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.02},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.04},
    "temperature": {"temperature": 0.6},
    "dynatemp": {"temperature": 0.9, "dynatemp_range": 0.6, "dynatemp_exponent": 1.5},
    "dynatemp-cold": {"temperature": 0.5, "dynatemp_range": 0.5},
    "bias": {"logit_bias": ((3, 9.5), (4, -100), (7, 0.25))},
}  # fmt: skip
USUAL: dict[str, Any] = {
    "temperature": 0.8, "top_k": 30, "top_p": 0.97, "min_p": 0.01, "repeat_penalty": 1.1,
    "presence_penalty": 0.3, "frequency_penalty": 0.2, "dry_multiplier": 0.5, "top_n_sigma": 3.0,
    "typical_p": 0.95, "xtc_probability": 1.0, "xtc_threshold": 0.15, "dynatemp_range": 0.3,
    "no_repeat_ngram": 3, "min_tokens": 2, "logit_bias": ((5, 4.0),),
}  # fmt: skip
CASES = {**ALONE, "usual": USUAL}


@pytest.mark.parametrize("case", CASES)
def test_the_kept_tokens_and_their_probabilities(vocab: Vocab, case: str) -> None:
    settings = replace(OPEN, **CASES[case])
    changed = 0
    for seed in SEEDS:
        row, text = random_row(vocab.n_tokens, seed), random_text(vocab.n_tokens, seed)
        row[vocab.ends()] = row.max() - 0.3  # else nobody would see that they are barred
        given = row.copy()
        chain = LlamaFilter(settings, vocab.n_tokens, vocab)
        chain.begin(text)
        left = chain.distribution(row)
        chain.close()
        assert np.array_equal(row, given)
        p = np.zeros(vocab.n_tokens)
        p[left.ids] = left.p
        expected = reference(row, settings, text, vocab)
        assert np.array_equal(p > 1e-25, expected > 1e-25)
        np.testing.assert_allclose(p, expected, rtol=2e-4, atol=1e-12)
        changed += not np.allclose(expected, softmax(row.astype(np.float64)), atol=1e-4)
    assert changed >= len(SEEDS) - 1


def test_a_text_is_followed_token_by_token(vocab: Vocab) -> None:
    settings = replace(OPEN, **{**USUAL, "temperature": 1.5, "no_repeat_ngram": 2})
    prompt, drawn = random_text(vocab.n_tokens, 1), []
    chain = LlamaFilter(settings, vocab.n_tokens, vocab)
    chain.begin(prompt)
    for seed in range(40):
        row = random_row(vocab.n_tokens, seed % 3)
        row[vocab.ends()] = row.max() - 0.3
        left = chain.distribution(row)
        p = np.zeros(vocab.n_tokens)
        p[left.ids] = left.p
        np.testing.assert_allclose(
            p, reference(row, settings, prompt, vocab, drawn), rtol=5e-4, atol=1e-12
        )
        token = left.draw(np.random.default_rng(seed).random())
        chain.accept(token)
        drawn.append(token)
    chain.close()


# ---- draws


class Given:
    """In the place of a context: a row of logits."""

    def __init__(self, row: NDArray[np.float32]) -> None:
        self.row = row

    def logits(self, row: int) -> NDArray[np.float32]:
        return self.row

    def sample(self, chain: Any, row: int) -> int:
        candidates = _candidates(len(self.row)).copy()
        candidates["logit"] = self.row
        data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(
            data=data, size=len(candidates), selected=-1, sorted=False
        )
        llama_cpp.llama_sampler_apply(chain.pointer, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(chain.pointer, token)
        return token


def differs(counts: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether counts are not of the expected ones, by chi-square; rare cells are put together."""
    if counts[expected == 0].any():
        return True
    rare = expected < 8
    cells = [*zip(counts[~rare], expected[~rare], strict=True)]
    if expected[rare].sum() >= 8:
        cells.append((counts[rare].sum(), expected[rare].sum()))
    statistic = sum((n - mean) ** 2 / mean for n, mean in cells)
    degrees = len(cells) - 1
    return bool(statistic > degrees * (1 - 2 / (9 * degrees) + Z * (2 / (9 * degrees)) ** 0.5) ** 3)


@pytest.mark.parametrize("case", ["usual", "xtc", "typical", "dynatemp"])
def test_draws_have_the_distribution(vocab: Vocab, case: str) -> None:
    rate = 0.4
    settings = replace(OPEN, **CASES[case])
    if settings.xtc_probability:
        settings = replace(settings, xtc_probability=rate)
    row, text = random_row(vocab.n_tokens, 2), random_text(vocab.n_tokens, 2)
    n = 3000
    # no token is accepted, so that all draws are of the same distribution
    sampler = LlamaSampler(replace(settings, seed=5), vocab)
    sampler.remember(text)
    source: Any = Given(row)
    source.sample = lambda chain, row: _draw(source.row, chain)
    rules = sampler._rules
    counts = np.zeros(vocab.n_tokens)
    for _ in range(n):
        if rules is None:
            token = sampler.draw(source)
        else:
            with rules.applied(row):
                token = _draw(row, sampler.chain)
        counts[token] += 1
    sampler.close()
    expected = rate * reference(row, settings, text, vocab)
    expected += (1 - rate) * reference(row, settings, text, vocab, coin=False)
    expected[expected < 1e-25] = 0
    assert not differs(counts, n * expected)
    other = reference(row, replace(settings, temperature=2.5), text, vocab, coin=False)
    other[expected == 0] = 0
    assert differs(counts, n * other / other.sum())


def _draw(row: NDArray[np.float32], chain: Any) -> int:
    candidates = _candidates(len(row)).copy()
    candidates["logit"] = row
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(
        data=data, size=len(candidates), selected=-1, sorted=False
    )
    llama_cpp.llama_sampler_apply(chain.pointer, ctypes.byref(array))
    return int(array.data[array.selected].id)


def test_the_coins_of_xtc_are_not_the_draws(vocab: Vocab) -> None:
    row = np.full(vocab.n_tokens, -100, np.float32)
    row[:4] = np.log([0.4, 0.3, 0.2, 0.1])
    p = 0.5 * np.array([0.4, 0.3, 0.2, 0.1]) + 0.5 * np.array([0, 0.3, 0.2, 0.1]) / 0.6
    pairs = np.zeros((4, 4))
    for seed in range(3000):
        settings = replace(OPEN, xtc_probability=0.5, xtc_threshold=0.25, seed=seed)
        sampler = LlamaSampler(settings, vocab)
        first, second = (_draw(row, sampler.chain) for _ in range(2))
        pairs[first, second] += 1
        sampler.close()
    # the second coin says nothing of the first draw
    assert not differs(pairs.ravel(), 3000 * np.outer(p, p).ravel())


def mirostat_steps(row: Any, drawn: Sequence[int], settings: SamplingSettings) -> list[Logits]:
    """What each token was drawn from (https://arxiv.org/abs/2007.14966, algorithm 2)."""
    mu, found = 2 * settings.mirostat_tau, []
    for i, token in enumerate(drawn):
        p = softmax(row(i) / settings.temperature)
        kept = -np.log2(p) <= mu
        if not kept.any():
            kept[p.argmax()] = True
        p = np.where(kept, p, 0) / p[kept].sum()
        found.append(p)
        mu -= settings.mirostat_eta * (-np.log2(p[token]) - settings.mirostat_tau)
    return found


def adaptive_steps(row: Any, drawn: Sequence[int], settings: SamplingSettings) -> list[Logits]:
    """What each token was drawn from (https://github.com/ggml-org/llama.cpp/pull/17927)."""
    target, decay = settings.adaptive_target, settings.adaptive_decay
    total, weight, found = target / (1 - decay), 1 / (1 - decay), []
    for i, token in enumerate(drawn):
        p = softmax(row(i) / settings.temperature)
        aim = min(1.0, max(0.0, 2 * target - total / weight))
        away = np.abs(p - aim) / 0.3
        found.append(softmax(5 - 10 * away**2 / (1 + away)))
        total, weight = p[token] + decay * total, 1 + decay * weight
    return found


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (replace(OPEN, mirostat=2, mirostat_tau=2.5, mirostat_eta=0.3), mirostat_steps),
        (replace(OPEN, mirostat=2, temperature=1.4), mirostat_steps),
        (replace(OPEN, adaptive_target=0.2, adaptive_decay=0.6), adaptive_steps),
        (replace(OPEN, adaptive_target=0.0, temperature=0.7), adaptive_steps),
    ],
)
@pytest.mark.parametrize("seed", [3, 4])
def test_draws_that_adapt(vocab: Vocab, settings: SamplingSettings, steps: Any, seed: int) -> None:
    n_vocab, n = 60, 1500
    rows = [random_row(n_vocab, seed) * 1.5 for seed in range(7)]
    sampler = LlamaSampler(replace(settings, seed=seed), vocab)
    drawn = [Given(rows[i % 7]).sample(sampler.chain, 0) for i in range(n)]
    sampler.close()
    found = steps(lambda i: rows[i % 7].astype(np.float64), drawn, settings)
    assert all(p[token] > 0 for p, token in zip(found, drawn, strict=True))
    uniform = np.random.default_rng(0)

    def even(found: Sequence[Logits]) -> bool:
        # where a token lies in its distribution is even, whatever that is
        points = [
            p[:token].sum() + p[token] * uniform.random()
            for p, token in zip(found, drawn, strict=True)
        ]
        counts = np.histogram(points, 20, (0, 1))[0]
        return not differs(counts, np.full(20, n / 20))

    assert even(found)
    assert not even([softmax(rows[i % 7] * 0.5) for i in range(n)])


# ---- interactions


@pytest.mark.parametrize(
    "given",
    [
        {"logit_bias": tuple((token, 100.0) for token in range(300, 340))},
        {"repeat_penalty": 1000.0, "presence_penalty": 100.0, "frequency_penalty": 100},
        {"dry_multiplier": 100.0, "dry_base": 100.0, "dry_allowed_length": 1},
        {"typical_p": 0.3, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"top_n_sigma": 0.1}, {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"dynatemp_range": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"mirostat": 2}, {"adaptive_target": 0.1}, {"no_repeat_ngram": 1}, {"min_tokens": 1000},
    ],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_nothing_that_a_constraint_forbids(
    model: LlamaEngine, given: dict[str, Any], temperature: float
) -> None:
    prompt = model.vocab.tokenize("ab" * 20)
    settings = SamplingSettings(temperature=temperature, seed=2, regex="(ab){12}[xy]?", **given)
    done = complete(model, prompt, settings, StopSettings(80))
    assert done.text.rstrip("xy") == "ab" * 12
    assert done.finish_reason.value == "end"


def test_no_end_before_the_least_number_of_tokens(model: LlamaEngine) -> None:
    (end,) = model.vocab.ends()
    eager = SamplingSettings(temperature=0, logit_bias=((end, 100),))
    prompt = model.vocab.tokenize("She")
    for n in (0, 1, 5):
        done = complete(model, prompt, replace(eager, min_tokens=n), StopSettings(20))
        assert (len(done.tokens), done.tokens[-1]) == (n + 1, end)


def test_no_ngram_twice(model: LlamaEngine) -> None:
    prompt = model.vocab.tokenize("one two one two one two one")
    for n in (1, 2, 3):
        settings = SamplingSettings(temperature=0, no_repeat_ngram=n)
        done = complete(model, prompt, settings, StopSettings(60))
        text = [*prompt, *done.tokens]
        later = [tuple(text[i : i + n]) for i in range(len(prompt) - n + 1, len(text) - n + 1)]
        assert len(set(later)) == len(later)
        assert not set(later) & {tuple(prompt[i : i + n]) for i in range(len(prompt) - n + 1)}


def test_a_bias_of_no_token(model: LlamaEngine) -> None:
    n_vocab = model.vocab.n_tokens
    with pytest.raises(SettingsError, match=f"^logit_bias {n_vocab}: the model has no such token"):
        complete(model, [1], SamplingSettings(logit_bias=((n_vocab, 1),)), StopSettings(1))


def test_a_wide_window_takes_no_gigabytes(vocab: Vocab) -> None:
    wide = SamplingSettings(
        repeat_penalty=1.1, repeat_last_n=(1 << 31) - 1,
        dry_multiplier=1, dry_penalty_last_n=(1 << 31) - 1,
    )  # fmt: skip
    for _ in range(20):
        LlamaSampler(wide, vocab).close()
    peak = int(next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text("utf-8").splitlines()
        if line.startswith("VmHWM")
    ))  # fmt: skip
    assert peak < 4 << 20  # in kB


OFF: dict[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0, "dry_multiplier": 0, "no_repeat_ngram": 0,
    "min_tokens": 0, "top_n_sigma": 0, "typical_p": 1, "xtc_probability": 0, "dynatemp_range": 0,
    "mirostat": 0, "adaptive_target": -1, "logit_bias": (),
}  # fmt: skip
TUNED: dict[str, Any] = {
    "dry_base": 3, "dry_allowed_length": 1, "dry_penalty_last_n": 7, "xtc_threshold": 0.01,
    "dynatemp_exponent": 3, "mirostat_tau": 1, "mirostat_eta": 1, "adaptive_decay": 0,
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_is_off_changes_no_token(model: LlamaEngine, temperature: float) -> None:
    prompt = model.vocab.tokenize("It was")
    plain = SamplingSettings(temperature=temperature, seed=3)
    assert replace(plain, **OFF) == plain
    expected = complete(model, prompt, plain, StopSettings(40)).tokens
    settings = replace(plain, **OFF, **TUNED)
    assert complete(model, prompt, settings, StopSettings(40)).tokens == expected
    for name in OFF.keys() - {"logit_bias", "min_tokens"}:
        on: dict[str, Any] = {"mirostat": 2, "no_repeat_ngram": 1, "dry_multiplier": 90}
        other = replace(plain, dry_allowed_length=1, **{name: on.get(name, 0.9)})
        if temperature or name in ("presence_penalty", "frequency_penalty", "no_repeat_ngram"):
            assert complete(model, prompt, other, StopSettings(40)).tokens != expected, name
