"""The batch engine pushed: records come and go between steps, and no answer changes by it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from helpers import BUNDLED, REPOSITORY, Converter

from infer_os.native.errors import Interrupted
from infer_os.native.scoring import score_rows
from infer_os.runtime.batch import prompt_scores
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.guesses import Guesses
from infer_os.runtime.batch.records import BadRecord, Record, Result
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.chat.frame import Message
from infer_os.runtime.errors import ModelClosed
from infer_os.runtime.scoring.score_records import parsed_texts
from infer_os.runtime.scoring.scorer import Scorer
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

TEXT = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text()
SETTINGS = EngineSettings(context=256, threads=1)
GREEDY = SamplingSettings(temperature=0)
MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")


def records(count: int, sampling: SamplingSettings = GREEDY) -> list[Record]:
    """Prompts that repeat themselves, some of which begin alike; some have several samples."""
    chance = random.Random(3)
    made = []
    for i in range(count):
        at = 3000 * chance.randrange(8)
        part = TEXT[at : at + chance.randint(5, 150)]
        stops = StopSettings(chance.randint(1, 24))
        made.append(Record(i, i + 1, sampling, stops, f"{part}\n{part[:40]}", n=1 + i % 5 // 4))
    return made


def keyed(results: list[Result]) -> dict[Any, Result]:
    assert len({(r.id, r.index) for r in results}) == len(results)
    return {(r.id, r.index): r for r in results}


def pushed(engine: BatchEngine, items: list[Record], chance: random.Random) -> list[Result]:
    """Results of records that come at random moments."""
    line, got = list(items), list[Result]()
    while line or engine.is_busy:
        for _ in range(min(len(line), chance.choice((0, 0, 0, 1, 2, 9)))):
            engine.submit(line.pop(0))
        for _ in range(chance.choice((1, 3, 10))):
            assert engine.step() == engine.is_busy
        if chance.random() < 0.7:
            got += engine.take()
    return got + engine.take()


@pytest.fixture(scope="module")
def engine(converted: Converter) -> Iterator[BatchEngine]:
    with BatchEngine(converted(MODEL, "q8_0"), SETTINGS, BatchSettings(4)) as made:
        yield made


@pytest.mark.parametrize(
    ("parallel", "native", "draft"),
    [(2, True, "lookup"), (8, False, "lookup"), (8, True, "none"), (13, False, "none")],
)
def test_when_a_record_comes_shows_in_no_answer(
    converted: Converter, parallel: int, native: bool, draft: str
) -> None:
    settings = replace(SETTINGS, native=native, draft=draft)
    # to the last bit, where nothing is guessed
    batch = BatchSettings(parallel, logprobs=0 if draft == "lookup" else 2)
    for sampling in (GREEDY, SamplingSettings(temperature=0.8, seed=5, repeat_penalty=1.1)):
        items = records(20, sampling)
        with BatchEngine(converted(MODEL, "q8_0"), settings, batch) as engine:
            expected = keyed(list(engine.run(items)))
            for seed in range(3):
                engine.restart()
                assert keyed(pushed(engine, items, random.Random(seed))) == expected
                assert engine.statistics.records == len(expected)


def test_prompts_that_come_take_the_place_of_guesses(
    converted: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # guesses must look worth their while, however busy this machine is
    monkeypatch.setattr(Guesses, "step_took", lambda self, *_: setattr(self, "_step_s", 0.05))
    # with 8 slots, one sequence alone has guesses in all rows of a step
    settings = replace(SETTINGS, native=False, draft="lookup", context=512)
    again = TEXT[:150]
    first = Record("first", 1, GREEDY, StopSettings(60), f"{again}\n\n{again}\n\n{again[:40]}")
    late = [replace(record, n=1) for record in records(7)]
    with BatchEngine(converted(MODEL, "q8_0"), settings, BatchSettings(8)) as engine:
        expected = keyed(list(engine.run([first, *late])))
        guesses = engine.guesses
        assert guesses is not None
        for n_late in (7, 3, 1):
            engine.restart()
            engine.submit(first)
            while not guesses._proposals:
                assert engine.step()
            for record in late[:n_late]:
                engine.submit(record)
            while engine.step():
                pass
            got = keyed(engine.take())
            assert len(got) == 1 + n_late
            assert all(expected[key] == result for key, result in got.items())
        assert guesses.counts[1] > 0


def test_each_result_is_taken_once(engine: BatchEngine) -> None:
    engine.restart()
    items = records(6)
    for record in items:
        engine.submit(record)
    assert engine.take() == []
    while engine.step():
        pass
    results = engine.take()
    assert set(keyed(results)) == {
        (r.id, i if r.n > 1 else None) for r in items for i in range(r.n)
    }
    assert engine.take() == []
    assert not engine.step()


def test_it_says_how_many_it_can_use(engine: BatchEngine) -> None:
    engine.restart()
    assert engine.n_wanted == 5  # 4 slots, and one to go on with
    long = replace(records(1)[0], stops=StopSettings(30))
    engine.submit(long)
    engine.submit(BadRecord(2, "line 2: no JSON"))
    assert engine.n_wanted == 4
    engine.submit(replace(long, id="many", n=3))
    assert engine.n_wanted == 1
    engine.step()
    assert engine.n_wanted == 1
    engine.submit(replace(long, id="next"))
    assert engine.n_wanted == 0
    engine.cancel("many")
    assert engine.n_wanted == 3


def test_what_cannot_be_answered_becomes_an_error(engine: BatchEngine) -> None:
    engine.restart()
    good = records(1)[0]
    engine.submit(BadRecord(1, "line 1: no JSON"))
    assert [r.error for r in engine.take()] == ["line 1: no JSON"]
    engine.submit(replace(good, id="empty", prompt="", n=3))
    engine.submit(replace(good, id="long", prompt="x " * 400, n=2, unit="row"))
    engine.submit(good)
    while engine.step():
        pass
    errors = {result.id: result.error for result in engine.take()}
    assert errors[good.id] is None
    assert errors["empty"] == "line 1: the prompt is empty"
    assert str(errors["long"]).startswith("row 1: the prompt has ")
    assert engine.statistics.failed == 3


def test_a_cancelled_record_gives_no_result(engine: BatchEngine) -> None:
    items = [replace(r, id=name, n=n, stops=StopSettings(24)) for r, name, n in zip(
        records(5), ("runs", "many", "short", "waits", "stays"), (1, 3, 1, 2, 1), strict=True
    )]  # fmt: skip
    items[2] = replace(items[2], stops=StopSettings(1))
    expected = keyed(list(engine.run(items)))
    engine.restart()
    for record in (items[2], items[0], items[1], items[3], items[4]):
        engine.submit(record)
    # of the 4 slots the short one frees its own; what waits is cancelled in line
    while engine.statistics.records == 0:
        engine.step()
    assert engine.cancel("short")  # finished, but not taken
    assert not engine.cancel("short")
    assert not engine.cancel("unknown")
    assert engine.cancel("many")
    assert engine.cancel("runs")
    assert engine.cancel("waits")
    assert engine.n_wanted == 4
    while engine.step():
        pass
    assert keyed(engine.take()) == {("stays", None): expected["stays", None]}
    assert not engine.cancel("stays")
    # the slots serve as before
    for record in items:
        engine.submit(record)
    while engine.step():
        pass
    assert keyed(engine.take()) == expected


def test_cancelled_at_any_moment(engine: BatchEngine) -> None:
    items = records(12)
    expected = keyed(list(engine.run(items)))
    for seed in range(6):
        chance = random.Random(seed)
        engine.restart()
        gone: set[Any] = set()
        for record in items:
            engine.submit(record)
        got: list[Result] = []
        while engine.step():
            if chance.random() < 0.1:
                victim = chance.choice(items).id
                taken = {result.id for result in got}
                if victim not in taken and engine.cancel(victim):
                    gone.add(victim)
            if chance.random() < 0.3:
                got += engine.take()
        got += engine.take()
        assert gone
        assert keyed(got) == {key: r for key, r in expected.items() if key[0] not in gone}


def test_a_listener_hears_the_text_as_it_grows(converted: Converter) -> None:
    asked = (Message("user", "How do you like the ball?"),)
    base = records(1)[0]
    items = [
        replace(base, id="many", n=3, sampling=SamplingSettings(seed=4), stops=StopSettings(20)),
        replace(base, id="stops", stops=StopSettings(40, ("the", "\n"))),
        replace(base, id="talk", prompt=None, messages=asked, stops=StopSettings(30)),
    ]
    heard: dict[Any, list[str]] = defaultdict(list)
    early = False
    batch = BatchSettings(4, style="dialogue")
    with BatchEngine(converted(MODEL, "q8_0"), SETTINGS, batch) as engine:
        # what may begin a stop string is held back to the end
        (free,) = engine.run([replace(base, stops=StopSettings(9))])
        items.append(replace(base, id="held", stops=StopSettings(9, (f"{free.text[-1]}#",))))
        engine.restart()
        for record in items:
            engine.submit(
                record, listener=lambda piece: heard[piece.id, piece.index].append(piece.text)
            )
        while engine.step():
            early = early or (len(heard) == 6 and not engine.take())
        engine.restart()
        results = list(engine.run(items))
    assert early
    assert len(heard["many", 0]) > 3
    assert "" not in [text for texts in heard.values() for text in texts]
    assert {(r.id, r.index or 0): r.text for r in results} == {
        key: "".join(texts) for key, texts in heard.items()
    }


def test_a_prompt_that_was_made_before(engine: BatchEngine) -> None:
    (record,) = records(1)
    expected = keyed(list(engine.run([record])))
    prompt = engine.prompt_tokens(record)
    for given in (replace(record, prompt="not this one"), replace(record, prompt=prompt)):
        engine.submit(given, prompt=prompt)
        while engine.step():
            pass
        assert keyed(engine.take()) == expected
    assert engine.prompt_tokens(replace(record, prompt=prompt)) == prompt


def test_each_record_says_what_is_told_of_its_tokens(engine: BatchEngine) -> None:
    (base,) = records(1)
    base = replace(base, stops=StopSettings(5))
    heard: dict[Any, list[Any]] = defaultdict(list)
    for count in (None, 0, 3):
        engine.submit(
            replace(base, id=str(count), logprobs=count),
            listener=lambda piece: heard[piece.id].extend(piece.logprobs),
        )
    while engine.step():
        pass
    results = {result.id: result for result in engine.take()}
    assert results["None"].logprobs is None
    for name, count in (("0", 0), ("3", 3)):
        told = results[name].logprobs
        assert told is not None
        assert [one.token for one in told] == list(results[name].tokens)
        assert [len(one.top) for one in told] == [count] * 5
        assert heard[name] == list(told)
    assert [one.top[0][0] for one in results["3"].logprobs or ()] == list(results["3"].tokens)


def test_a_bias_changes_what_is_drawn(engine: BatchEngine) -> None:
    (base,) = records(1)
    base = replace(base, stops=StopSettings(4))
    (free,) = engine.run([base])
    for temperature in (0.0, 1.0):
        wish = replace(GREEDY, temperature=temperature, logit_bias=((11, 100.0),))
        (pushed_up,) = engine.run([replace(base, sampling=wish)])
        assert pushed_up.tokens == (11, 11, 11, 11)
    banned = replace(GREEDY, logit_bias=tuple((token, -100.0) for token in set(free.tokens)))
    (other,) = engine.run([replace(base, sampling=banned)])
    assert not set(other.tokens) & set(free.tokens)


def test_after_an_error_it_goes_on_with_what_comes(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = records(8)
    expected = keyed(list(engine.run(items)))
    engine.restart()
    for record in items:
        engine.submit(record)
    for _ in range(6):
        engine.step()

    def interrupted(_rows: object) -> None:
        raise Interrupted("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(engine.context, "decode", interrupted)
        with pytest.raises(Interrupted):
            engine.step()
    assert not engine.is_busy
    finished = keyed(engine.take())
    assert all(expected[key] == result for key, result in finished.items())
    for record in items:
        engine.submit(record)
    while engine.step():
        pass
    assert keyed(engine.take()) == expected


def test_an_engine_that_is_closed(converted: Converter) -> None:
    with BatchEngine(converted(MODEL, "q8_0"), SETTINGS, BatchSettings(2)) as engine:
        run = engine.run(records(3))
        next(run)
    assert not engine.is_busy
    with pytest.raises(ModelClosed):
        engine.submit(records(1)[0])
    with pytest.raises(ModelClosed):
        engine.step()
    run.close()
    engine.close()


def test_running_sequences_do_not_wait_for_a_record(engine: BatchEngine) -> None:
    items = records(6)
    expected = keyed(list(engine.run(items)))

    class Slow:
        """Has a record only for who waits, as a pipe whose writer waits for answers."""

        def __init__(self) -> None:
            self.left, self.is_over = list(items), False

        def take(self, *, wait: bool) -> Record | None:
            assert wait != engine.is_busy
            if not wait:
                return None
            self.is_over = not self.left
            return self.left.pop(0) if self.left else None

    assert keyed(list(engine.run(Slow()))) == expected


@pytest.mark.parametrize(("parallel", "draft"), [(1, "lookup"), (3, "lookup"), (8, "none")])
def test_prompts_that_are_scored_beside_others(
    converted: Converter, parallel: int, draft: str
) -> None:
    model, settings = converted(MODEL, "q8_0"), replace(SETTINGS, draft=draft)
    written = records(10)
    given = [record.prompt for record in records(14)] + ["It", TEXT[:700]]
    scored = [
        Record(f"s{i}", i + 1, GREEDY, StopSettings(3), prompt, n=1 + i % 2, logprobs=2,
               scores_prompt=True, draws=i % 4 > 0)
        for i, prompt in enumerate(given)
    ]  # fmt: skip
    scored = [replace(record, n=1) if not record.draws else record for record in scored]
    with BatchEngine(model, settings, BatchSettings(parallel)) as engine:
        expected = keyed(list(engine.run(written)))
        engine.restart()
        items = [*written, *scored]
        random.Random(4).shuffle(items)
        got = keyed(pushed(engine, items, random.Random(5)))
        assert all(got[key] == result for key, result in expected.items())
        prompts = {r.id: engine.prompt_tokens(r) for r in scored}
    with closing(Scorer(model, SETTINGS, ScoringSettings(2))) as scorer:
        opening = scorer.vocab.opening
        assert opening is not None
        for record in scored:
            result = got[record.id, 0 if record.n > 1 else None]
            told = result.prompt_logprobs
            assert told is not None and [one.token for one in told] == list(prompts[record.id])
            assert len(result.tokens) == (3 if record.draws else 0)
            if record.n > 1:
                assert got[record.id, 1].prompt_logprobs is None
            # the first token given the one that begins texts, the others given all before them
            first, rest = scorer.vocab.piece(told[0].token).decode(), told[1:]
            text = "".join(one.text for one in told)
            if not rest or scorer.vocab.tokenize(first) != [told[0].token]:
                continue
            (score,) = scorer.run(parsed_texts([(first, text[len(first) :])]))
            assert score.tokens is not None
            assert [t.logprob for t in score.tokens] == [one.logprob for one in rest]
            likeliest = all(one.top[0][0] == one.token for one in rest)
            assert likeliest == score.is_greedy


def test_a_prompt_without_finite_scores_is_an_error(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(1, 1, GREEDY, StopSettings(3), TEXT[:50], scores_prompt=True, draws=False)

    def broken(*given: Any) -> Any:
        scores = score_rows(*given)
        scores["reference_log_prob"][-1] = float("nan")
        return scores

    monkeypatch.setattr(prompt_scores, "score_rows", broken)
    engine.restart()
    (result,) = engine.run([record])
    assert result.error is not None and "no finite probabilities" in result.error
    monkeypatch.undo()
    (result,) = engine.run([record])
    assert result.error is None and result.prompt_logprobs is not None
