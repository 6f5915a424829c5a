"""Sampled text has the target's distribution, whatever is guessed; a wrong rule is noticed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLED, Converter

from infer_os.native.sampler_chain import Distribution
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.sampler import LlamaFilter
from infer_os.runtime.settings import EngineSettings, SamplingSettings
from infer_os.runtime.speculative import verifier
from infer_os.runtime.speculative.draft import Drafted
from infer_os.runtime.speculative.model_drafter import ModelDrafter
from infer_os.runtime.speculative.verifier import SameDistribution, SameText

N = 4000
#: Chance that a right rule fails a comparison; seeds are fixed, so it does or does not for good.
ALPHA = 1e-4


def chi_square_limit(degrees: int) -> float:
    """Upper ``ALPHA`` quantile (Wilson and Hilferty's approximation)."""
    z = 3.719
    return degrees * (1 - 2 / (9 * degrees) + z * (2 / (9 * degrees)) ** 0.5) ** 3


def differs(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> bool:
    """Whether counts are not of the expected distribution; rare cells are put together."""
    n = counts.total()
    assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
    if any(cell not in expected for cell in counts):
        return True
    common = {cell: n * p for cell, p in expected.items() if n * p >= 8}
    rare = n - sum(common.values())
    statistic = sum((counts[cell] - mean) ** 2 / mean for cell, mean in common.items())
    if rare >= 8:
        seen = n - sum(counts[cell] for cell in common)
        statistic += (seen - rare) ** 2 / rare
    return statistic > chi_square_limit(len(common) - (rare < 8))


# ---- the arithmetic of a distribution


def distribution(**p: float) -> Distribution:
    ids = np.array([int(name[1:]) for name in p], np.int32)
    return Distribution(ids, np.array(list(p.values())))


def test_the_residual() -> None:
    left = distribution(_1=0.5, _2=0.3, _3=0.2).without(distribution(_3=0.9, _2=0.1))
    assert dict(zip(left.ids.tolist(), left.p.tolist(), strict=True)) == pytest.approx(
        {1: 0.5 / 0.7, 2: 0.2 / 0.7, 3: 0.0}
    )


def test_nothing_left_is_the_whole() -> None:
    same = distribution(_1=0.5, _2=0.5)
    assert same.without(same).p.tolist() == [0.5, 0.5]


def test_draws_cover_the_interval() -> None:
    left = distribution(_4=0.25, _9=0.75)
    assert [left.draw(u) for u in (0.0, 0.2499, 0.2501, 0.99999999)] == [4, 4, 9, 9]


# ---- the rules on a known distribution


class FilterSampler:
    """Draws from what a filter leaves."""

    def __init__(self, chain: LlamaFilter) -> None:
        self._filter = chain
        self._random = np.random.default_rng(6)

    def draw(self, source: np.ndarray) -> int:
        return self._filter.distribution(source).draw(self._random.random())

    def remember(self, tokens: list[int]) -> None:
        pass

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        self._filter.close()


class Rows:
    """An engine whose rows of logits are given, whatever it holds."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = np.log(rows).astype(np.float32)
        self.tokens: list[int] = [0]
        self._first = 0

    def extend(self, tokens: list[int]) -> None:
        self._first = len(self.tokens) - 1
        self.tokens.extend(tokens)

    def trim(self, n_tokens: int) -> None:
        del self.tokens[n_tokens:]

    def logits(self, row: int = -1) -> np.ndarray:
        return self.rows[self._first + row]

    def new_filter(self, settings: SamplingSettings) -> LlamaFilter:
        return LlamaFilter(settings, self.rows.shape[1])

    def new_sampler(self, settings: SamplingSettings) -> FilterSampler:
        return FilterSampler(self.new_filter(settings))

    def sample(self, sampler: FilterSampler, row: int) -> int:
        return sampler.draw(self.logits(row))


ALL = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)
TARGET = np.array([[0.5, 0.2, 0.2, 0.1], [0.1, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]])
DRAFT = np.array([[0.1, 0.6, 0.1, 0.2], [0.3, 0.3, 0.3, 0.1]])


def rounds(n: int, *, drawn_guesses: bool = True) -> Counter[tuple[int, ...]]:
    """The first two tokens of many rounds with two guesses."""
    engine = Rows(TARGET)
    rule = SameDistribution(engine, ALL)  # type: ignore[arg-type]
    random = np.random.default_rng(5)
    ids = np.arange(4, dtype=np.int32)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(n):
        engine.tokens = [0]
        guesses = []
        for row in DRAFT:
            left = Distribution(ids, row)
            token = left.draw(random.random()) if drawn_guesses else 1
            guesses.append(Drafted(token, left.of(token), left if drawn_guesses else None))
        drawn = rule.verify(0, guesses)
        assert len(engine.tokens) == 1 + len(drawn)
        if len(drawn) == 1:  # the second token comes from the next, plain step
            drawn.append(Distribution(ids, TARGET[1]).draw(random.random()))
        counts[drawn[0], drawn[1]] += 1
    return counts


EXPECTED = {(i, j): float(TARGET[0, i] * TARGET[1, j]) for i in range(4) for j in range(4)}


@pytest.mark.parametrize("drawn_guesses", [True, False])
def test_rejection_keeps_the_distribution(drawn_guesses: bool) -> None:
    assert not differs(rounds(N, drawn_guesses=drawn_guesses), EXPECTED)


def test_keeping_every_guess_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_proposal", lambda guess: Distribution(
        np.array([guess.token], np.int32), np.zeros(1)))  # fmt: skip
    assert differs(rounds(N), EXPECTED)


def test_a_rule_without_the_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distribution, "without", lambda self, other: self)
    assert differs(rounds(N), EXPECTED)


def test_acceptance_by_the_targets_probability_alone_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proposal = verifier._proposal
    monkeypatch.setattr(
        verifier, "_proposal", lambda guess: Distribution(proposal(guess).ids, np.ones(4))
    )
    assert differs(rounds(N), EXPECTED)


# ---- the bundled models

SETTINGS = {
    "usual": SamplingSettings(temperature=0.8, top_k=6, seed=3),
    "penalty": SamplingSettings(
        temperature=1.2, top_k=5, top_p=0.9, min_p=0.02, repeat_penalty=1.5, seed=4
    ),
    "history": SamplingSettings(
        temperature=1.2,
        top_k=6,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        dry_multiplier=2,
        dry_allowed_length=1,
        no_repeat_ngram=2,
        min_tokens=2,
        logit_bias=((0, 20.0),),
        seed=5,
    ),
    "choices": SamplingSettings(
        temperature=0.9, top_k=20, top_n_sigma=2.5, typical_p=0.8, dynatemp_range=0.4, seed=6
    ),
    "xtc": SamplingSettings(
        temperature=1.2, top_k=6, xtc_probability=0.4, xtc_threshold=0.1, seed=7
    ),
}


def plain_distribution(
    engine: LlamaEngine, prompt: list[int], settings: SamplingSettings
) -> dict[tuple[int, ...], float]:
    """Every pair of first tokens and its probability, by single steps."""
    engine.feed(prompt)
    return {
        (token, after): p * q
        for token, p in _next(engine, prompt, (), settings).items()
        for after, q in _next(engine, prompt, (token,), settings).items()
        if p * q > 1e-20
    }


def _next(
    engine: LlamaEngine, prompt: list[int], drawn: tuple[int, ...], settings: SamplingSettings
) -> dict[int, float]:
    """The next token; of XTC, which is applied or not, a mixture."""
    engine.feed([*prompt, *drawn])
    rate = settings.xtc_probability
    mixture: dict[int, float] = {}
    for weight, probability in ((rate, 1.0), (1 - rate, 0.0)):
        filter_ = engine.new_filter(replace(settings, xtc_probability=probability))
        filter_.begin(prompt)
        for token in drawn:
            filter_.accept(token)
        left = filter_.distribution(engine.logits())
        filter_.close()
        for token, p in zip(left.ids.tolist(), left.p.tolist(), strict=True):
            mixture[token] = mixture.get(token, 0) + weight * p
    return {token: p for token, p in mixture.items() if p}


def speculative_pairs(
    engine: LlamaEngine,
    drafter: ModelDrafter,
    prompt: list[int],
    settings: SamplingSettings,
    n: int = 1500,
) -> Counter[tuple[int, ...]]:
    """The same pairs, drawn many times with guesses of the draft."""
    drafter.sample_like(settings)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(n):
        rule = SameDistribution(engine, replace(settings, seed=seed))
        engine.trim(len(prompt) - 1)
        rule.begin(prompt)
        drafter.begin(prompt)
        guesses = [guess for guess, _ in zip(drafter.guess(), range(2), strict=False)]
        drawn = rule.verify(prompt[-1], guesses)
        if len(drawn) == 1:
            engine.step(drawn[0])
            drawn.append(rule.draw())
        counts[drawn[0], drawn[1]] += 1
        rule.close()
    return counts


@pytest.fixture(scope="module")
def pair(converted: Converter) -> tuple[Path, Path]:
    names = {folder.name: folder for folder in BUNDLED}
    return converted(names["austen-6m"], "q8_0"), converted(names["austen-draft"], "q8_0")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("wrong", [False, True])
def test_the_bundled_models_distribution_is_kept(
    pair: tuple[Path, Path],
    settings: SamplingSettings,
    wrong: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine_settings = EngineSettings(context=64, threads=1, kv="q8_0", draft="lookup")
    with (
        LlamaEngine(pair[0], engine_settings) as engine,
        LlamaEngine(pair[1], EngineSettings(context=64, threads=1)) as draft,
    ):
        prompt = engine.vocab.tokenize("She was not so much in")
        expected = plain_distribution(engine, prompt, settings)
        drafter = ModelDrafter(draft, np.ones(draft.vocab.n_tokens, np.bool_))
        if wrong:
            monkeypatch.setattr(Distribution, "without", lambda self, other: self)
        counts = speculative_pairs(engine, drafter, prompt, settings)
        assert differs(counts, expected) == wrong
        drafter.sample_like(None)


# ---- the same text


def guess(token: int) -> Drafted:
    return Drafted(token, 0.5)


def fake(reply: str) -> FakeEngine:
    engine = FakeEngine(saying(reply))
    engine.feed([1])
    return engine


@pytest.mark.parametrize(
    ("guessed", "drawn"), [(b"ell", b"ello"), (b"elX", b"ell"), (b"Xll", b"e"), (b"", b"e")]
)
def test_guesses_count_while_they_are_what_is_drawn(guessed: bytes, drawn: bytes) -> None:
    engine = fake("hello")
    rule = SameText(engine, SamplingSettings(temperature=0))
    first = rule.draw()
    assert rule.verify(first, [guess(token) for token in guessed]) == list(drawn)
    assert engine.tokens == [1, *b"hello"[: len(drawn)]]
