"""Beam search: equal to transformers' on stored prompts, and to an exhaustive search."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beam_comparison import ours
from helpers import BUNDLED, TESTS, Converter

from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.beams import Beam, BeamSearch
from infer_os.runtime.batch.records import RecordParser, Result
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

REFERENCES = TESTS / "reference"
STORED: list[dict[str, Any]] = json.loads((REFERENCES / "beams.json").read_text("utf-8"))


def folder_of(name: str) -> Path:
    bundled = {folder.name: folder for folder in BUNDLED}
    return bundled.get(name, REFERENCES / name)


@pytest.mark.parametrize("name", dict.fromkeys(case["model"] for case in STORED))
def test_the_texts_that_transformers_finds(tmp_path: Path, name: str) -> None:
    cases = [case for case in STORED if case["model"] == name]
    assert len(cases) >= (50 if name == "austen-6m" else 10)
    for case, beams in zip(cases, ours(cases, tmp_path, folder_of), strict=True):
        texts = [list(beam.tokens) for beam in beams]
        assert texts == case["texts"] or (name != "austen-6m" and agree(texts, case))
        assert [beam.score for beam in beams] == pytest.approx(case["scores"], abs=2e-3)


def agree(texts: list[list[int]], case: dict[str, Any]) -> bool:
    """Whether texts are those of a case, apart from ties: random models repeat themselves."""
    places = [case["texts"].index(text) for text in texts]
    return all(
        abs(case["scores"][place] - case["scores"][i]) < 3e-4 for i, place in enumerate(places)
    )


def test_stored_texts_end_in_every_way() -> None:
    lengths = {len(text) < case["max_tokens"] for case in STORED for text in case["texts"]}
    assert lengths == {True, False}


# ---- the search alone

END = 0


def followed(
    search: BeamSearch, logits_of: Callable[[tuple[int, ...]], np.ndarray]
) -> tuple[list[Beam], int]:
    """Run a search on logits that depend on the text; returns what it found, and its steps."""
    texts: list[tuple[int, ...]] = [()]
    for n_steps in itertools.count(1):
        step = search.push(np.array([logits_of(text) for text in texts], np.float32))
        if step is None:
            return search.finished, n_steps
        texts = [
            (*texts[parent], token) for parent, token in zip(step.parents, step.tokens, strict=True)
        ]
    raise AssertionError


def random_logits(seed: int, n_vocab: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    return lambda text: np.random.default_rng((seed, *text)).normal(0, 2, n_vocab)


def log_p(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("seed", range(8))
def test_enough_beams_find_the_best_of_all(seed: int) -> None:
    n_vocab, limit = 4, 3
    logits_of = random_logits(seed, n_vocab)
    every: dict[tuple[int, ...], float] = {}
    for n in range(1, limit + 1):
        for text in itertools.product(range(n_vocab), repeat=n):
            if END in text[:-1] or (n < limit and text[-1] != END):
                continue
            every[text] = sum(log_p(logits_of(text[:i]))[text[i]] for i in range(n)) / n
    found, n_steps = followed(BeamSearch(64, [END], limit), logits_of)
    assert n_steps == limit
    best = sorted(every, key=lambda text: -every[text])
    assert [beam.tokens for beam in found] == best[: len(found)]
    assert found[0].score == pytest.approx(every[best[0]], rel=1e-5)


def test_it_stops_when_nothing_better_can_come() -> None:
    # the end is certain after a few tokens
    def logits_of(text: tuple[int, ...]) -> np.ndarray:
        return np.array([20.0 if len(text) >= 3 else -20.0, 1.0, 0.0, -1.0])

    found, n_steps = followed(BeamSearch(2, [END], 100), logits_of)
    assert n_steps < 10
    assert [beam.tokens[-1] for beam in found] == [END, END]


# ---- records


@pytest.fixture(scope="module")
def model(converted: Converter) -> Path:
    return converted(folder_of("austen-6m"), "q8_0")


def results(model: Path, *values: dict[str, Any], beams: int = 3, **given: Any) -> list[Result]:
    parser = RecordParser(given.get("sampling", SamplingSettings()), StopSettings(12))
    records = [parser.parse(i + 1, value) for i, value in enumerate(values)]
    with BatchEngine(
        model, EngineSettings(context=64, threads=1), BatchSettings(beams=beams)
    ) as engine:
        assert engine.n_seq >= beams
        return list(engine.run(records))


def test_records_get_their_best_texts(model: Path) -> None:
    found = results(
        model, {"id": "a", "prompt": "She was", "n": 3}, {"id": "b", "prompt": "It"},
        {"id": "c", "prompt": "She was", "max_tokens": 5}, {"id": "d", "prompt": ""},
        {"id": "e", "prompt": "It is " * 40}, {"id": "f", "prompt": "She was", "n": 4},
    )  # fmt: skip
    assert [(each.id, each.index) for each in found] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", None), ("c", None), ("d", None), ("e", None),
        ("f", None),
    ]  # fmt: skip
    assert len({each.text for each in found[:3]}) == 3
    assert [len(each.tokens) for each in found[:5]] == [12, 12, 12, 12, 5]
    assert {each.finish_reason for each in found[:5]} == {"length"}
    assert [each.error for each in found[5:]] == [
        "line 4: the prompt is empty",
        found[6].error,
        "line 6: n 4 texts of 3 beams: expected at most 3",
    ]
    assert "but the context holds 64" in str(found[6].error)
    again = results(model, {"id": "b", "prompt": "It"})
    assert again[0].tokens == found[3].tokens


def test_a_full_context_ends_the_search(model: Path) -> None:
    prompt = "It is a truth universally acknowledged, that a single man in possession"
    (found,) = results(model, {"prompt": prompt, "max_tokens": -1})
    assert found.finish_reason == "context"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0.5}, "temperature"), ({"top_k": 3}, "top_k"), ({"seed": 1}, "seed"),
        ({"stop": "x"}, "stop"), ({"regex": "a", "min_tokens": 2}, "min_tokens, regex"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
    ],
)  # fmt: skip
def test_what_says_how_to_draw_is_refused(model: Path, given: dict[str, Any], said: str) -> None:
    (found,) = results(model, {"prompt": "She", **given})
    assert found.error is not None
    assert found.error.endswith(f"nothing is drawn: it cannot be combined with {said}")
    (found,) = results(model, {"prompt": "She", "temperature": 0})
    assert found.error is None


def test_a_conversation_is_refused(model: Path) -> None:
    (found,) = results(model, {"messages": [{"role": "user", "content": "Hello"}]})
    assert str(found.error).endswith("it cannot be combined with messages")


@pytest.mark.parametrize(
    "given", [{"parallel": 4}, {"logprobs": 2}, {"beams": 65}, {"beams": -1}]
)  # fmt: skip
def test_settings_that_do_not_go_together(given: dict[str, int]) -> None:
    with pytest.raises(SettingsError) as refused:
        BatchSettings(**{"beams": 4, **given})
    assert refused.value.field == next(iter(given))


def test_a_draft_is_refused(model: Path) -> None:
    with pytest.raises(SettingsError, match="--draft and --beams"):
        BatchEngine(model, EngineSettings(draft="lookup"), BatchSettings(beams=2))


def test_the_plan_has_room_for_the_beams(model: Path) -> None:
    def planned(beams: int) -> int:
        settings = EngineSettings(context=256, threads=1)
        with BatchEngine(model, settings, BatchSettings(beams=beams)) as engine:
            return engine.plan.kv

    assert planned(8) == 4 * planned(2)
