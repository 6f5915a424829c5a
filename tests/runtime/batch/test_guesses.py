"""Guesses in a batch: each sequence has its own, and the answers stay what they are without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import BUNDLED, REPOSITORY, Converter

from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Record, Result
from infer_os.runtime.batch.scheduler import Limits, Scheduler
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.generate import complete
from infer_os.runtime.plan.memory_plan import MemoryShortage
from infer_os.runtime.plan.step_rows import LEAST_ROWS
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

TEXT = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text()
SETTINGS = EngineSettings(context=512, threads=1, kv="q8_0")
GREEDY = SamplingSettings(temperature=0)
MODELS = {folder.name: folder for folder in BUNDLED}


@pytest.fixture(scope="module")
def target(converted: Converter) -> Path:
    return converted(MODELS["austen-6m"], "q8_0")


@pytest.fixture(scope="module")
def draft(converted: Converter) -> str:
    return str(converted(MODELS["austen-draft"], "q8_0"))


def records(n: int, sampling: SamplingSettings, most: int = 120) -> list[Record]:
    """Prompts that repeat themselves, so that there is something to look up."""
    parts = [TEXT[at : at + 150] for at in range(0, 3000 * n, 3000)]
    prompts = [f"{part}\n\n{part[:60]}" for part in parts]
    return [
        Record(i, i + 1, sampling, StopSettings(most - 7 * i), prompt)
        for i, prompt in enumerate(prompts)
    ]


def answers(
    path: Path, items: list[Record], parallel: int, option: str
) -> tuple[dict[Any, Result], tuple[int, int]]:
    settings = replace(SETTINGS, draft=option)
    with BatchEngine(path, settings, BatchSettings(parallel)) as engine:
        results = {result.id: result for result in engine.run(items)}
        return results, engine.guesses.counts if engine.guesses is not None else (0, 0)


@pytest.mark.parametrize("parallel", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("option", ["lookup", "model"])
def test_greedy_answers_are_those_without_guesses(
    target: Path, draft: str, parallel: int, option: str
) -> None:
    items = records(6, GREEDY)
    plain, _ = answers(target, items, parallel, "none")
    got, (drafted, accepted) = answers(
        target, items, parallel, draft if option == "model" else option
    )
    assert {key: result.tokens for key, result in got.items()} == {
        key: result.tokens for key, result in plain.items()
    }
    # with 6 sequences only the last ones that run have rows to spare
    assert accepted > (30 if parallel <= 4 else 0)
    assert drafted >= accepted


def test_they_are_those_of_one_after_the_other(target: Path, draft: str) -> None:
    items = records(4, GREEDY)
    got, _ = answers(target, items, 2, draft)
    with LlamaEngine(target, SETTINGS) as engine:
        for record in items:
            prompt = engine.vocab.tokenize(record.prompt or "")
            assert got[record.id].tokens == complete(engine, prompt, GREEDY, record.stops).tokens


def test_seeded_answers(target: Path, draft: str) -> None:
    items = records(4, SamplingSettings(temperature=0.8, seed=3, repeat_penalty=1.1))
    plain, _ = answers(target, items, 2, "none")
    got, (drafted, _) = answers(target, items, 2, draft)
    assert {k: r.tokens for k, r in got.items()} == {k: r.tokens for k, r in plain.items()}
    assert drafted > 0


def test_logprobs_are_told_of_what_is_drawn(target: Path, draft: str) -> None:
    items = records(2, GREEDY, 60)
    settings = replace(SETTINGS, draft=draft)
    with BatchEngine(target, settings, BatchSettings(2, logprobs=1)) as engine:
        for result in engine.run(items):
            assert result.logprobs is not None
            assert [entry.token for entry in result.logprobs] == list(result.tokens)


def test_stop_strings_and_a_full_context(target: Path, draft: str) -> None:
    stops = StopSettings(400, (" the",))
    items = [Record(0, 1, GREEDY, stops, TEXT[:200]),
             Record(1, 2, GREEDY, StopSettings(5000), TEXT[4000:5000])]  # fmt: skip
    plain, _ = answers(target, items, 2, "none")
    got, _ = answers(target, items, 2, draft)
    assert {k: (r.text, r.finish_reason) for k, r in got.items()} == {
        k: (r.text, r.finish_reason) for k, r in plain.items()
    }


def test_the_plan_has_room_for_the_drafts(target: Path, draft: str) -> None:
    with BatchEngine(target, SETTINGS, BatchSettings(2)) as engine:
        alone = engine.planned_bytes
    with pytest.raises(MemoryShortage, match="draft"):
        BatchEngine(target, replace(SETTINGS, draft=draft, memory=alone + 1_000_000),
                    BatchSettings(2))  # fmt: skip


def test_another_tokenizer(target: Path, converted: Converter) -> None:
    with pytest.raises(SettingsError, match=r"token \d+ is"):
        BatchEngine(target, replace(SETTINGS, draft=str(converted())), BatchSettings(2))


@pytest.mark.parametrize(("n_busy", "spare"), [(1, 7), (2, 3), (3, 1), (4, 1), (5, 0), (8, 0)])
def test_rows_to_spare(n_busy: int, spare: int) -> None:
    scheduler = Scheduler(Limits(64, 8))
    assert scheduler.spare_rows(more=False) == 0
    for i in range(n_busy):
        assert scheduler.admit([i + 1, 2]) is not None
    assert scheduler.spare_rows(more=False) == spare
    # the other slots may be taken before the next step
    assert scheduler.spare_rows(more=True) == 0


def test_guesses_take_the_place_of_fillers() -> None:
    scheduler = Scheduler(Limits(64, 8))
    for i in range(2):
        scheduler.admit([i + 1])
    while (step := scheduler.next_step()) is not None and not step.outputs:
        scheduler.computed(step)
    assert step is not None
    scheduler.computed(step)
    for slot in range(2):
        scheduler.push(slot, [5, 6, 7, 8], 4)
    step = scheduler.next_step()
    assert step is not None
    assert step.n_rows == LEAST_ROWS
    assert [(rows.n_real, rows.n_wanted) for rows in step.slots] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(("n_late", "dropped"), [(1, []), (2, [0]), (7, [0])])
def test_guesses_without_rows_are_dropped(n_late: int, dropped: list[int]) -> None:
    scheduler = Scheduler(Limits(64, 8))
    scheduler.admit([1, 2])
    while (step := scheduler.next_step()) is not None:
        scheduler.computed(step)
    scheduler.push(0, [5, 6, 7, 8], 4)
    for i in range(n_late):
        scheduler.admit([10 + i])
    assert scheduler.drop_guesses() == dropped
    assert scheduler.drop_guesses() == []
    step = scheduler.next_step()
    assert step is not None
    assert step.n_rows == LEAST_ROWS
    assert step.slots[0].n_wanted == (1 if dropped else 4)
    assert step.slots[0].tokens[0] == 5
