"""The scheduler with a cache that only checks: no model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from infer_os.runtime.batch.scheduler import Limits, Scheduler, Step
from infer_os.runtime.interface import shared_prefix
from infer_os.runtime.plan.step_rows import (
    LEAST_ROWS,
    MOST_ROWS_OF_SLOT,
    ROWS_STEP,
    STOCK,
    UNBOUND,
    Bounds,
    output_rows,
    slots_for,
)


class Cache:
    """What a KV cache would hold, row by row; refuses rows that do not follow."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows: list[list[int]] = [[] for _ in range(limits.n_slots)]

    def decode(self, step: Step) -> None:
        assert 1 <= step.n_rows <= self.limits.n_batch
        slots = [rows.slot for rows in step.slots]
        assert slots == sorted(set(slots))
        for rows in step.slots:
            held = self.rows[rows.slot]
            assert rows.position == len(held) - rows.n_again
            assert list(rows.tokens[: rows.n_again]) == held[rows.position :]
            del held[rows.position :]
            held.extend(rows.tokens)
            assert len(held) <= self.limits.n_ctx
            del held[rows.position + rows.n_real :]


def run(
    scheduler: Scheduler, cache: Cache, prompts: Sequence[Sequence[int]], lengths: Sequence[int]
) -> tuple[dict[int, list[int]], list[Step]]:
    """Answer every prompt with this many tokens, each the number of tokens before it."""
    waiting = list(range(len(prompts)))
    running: dict[int, int] = {}
    written: dict[int, list[int]] = {i: [] for i in waiting}
    steps: list[Step] = []
    for _ in range(10_000):
        while waiting and (place := scheduler.admit(prompts[waiting[0]])):
            if place.source is not None:
                cache.rows[place.slot] = list(cache.rows[place.source])
            del cache.rows[place.slot][place.n_kept :]
            running[place.slot] = waiting.pop(0)
        if not waiting and (move := scheduler.move()):
            cache.rows[move[1]], cache.rows[move[0]] = cache.rows[move[0]], []
            running[move[1]] = running.pop(move[0])
        step = scheduler.next_step()
        if step is None:
            break
        steps.append(step)
        cache.decode(step)
        scheduler.computed(step)
        for rows in step.slots:
            assert list(scheduler.held(rows.slot)) == cache.rows[rows.slot]
            if not rows.n_wanted:
                continue
            number = running[rows.slot]
            # all of the prompt and of what was written is there before a token is drawn
            expected = [*prompts[number], *written[number]]
            assert cache.rows[rows.slot] == expected
            written[number].append(len(expected))
            if len(written[number]) < lengths[number]:
                scheduler.push(rows.slot, [written[number][-1]])
            else:
                scheduler.release(rows.slot)
                del running[rows.slot], cache.rows[rows.slot][len(scheduler.held(rows.slot)) :]
    assert not waiting and not running
    return written, steps


@pytest.mark.parametrize("n_slots", [1, 2, 5, 8, 12, 32])
@pytest.mark.parametrize("seed", range(4))
def test_every_sequence_sees_its_own_tokens(n_slots: int, seed: int) -> None:
    chance = random.Random(seed)
    limits = Limits(n_ctx=300, n_slots=n_slots, n_batch=512, chunk=chance.choice([64, 512]))
    common = [chance.randrange(9) for _ in range(40)]
    prompts = [
        [*common[: chance.randrange(41)], *(chance.randrange(9) for _ in range(length))]
        for length in chance.choices([1, 2, 7, 30, 120, 200], k=40)
    ]
    lengths = [chance.randint(1, 50) for _ in prompts]
    scheduler = Scheduler(limits)
    written, steps = run(scheduler, Cache(limits), prompts, lengths)
    assert [len(written[i]) for i in range(40)] == lengths
    for step in steps:
        assert step.n_rows >= LEAST_ROWS and step.n_rows % ROWS_STEP == 0
        assert all(len(rows.tokens) <= MOST_ROWS_OF_SLOT for rows in step.slots)
        # rectangles of neighbours, which llama.cpp computes at once
        assert len({len(rows.tokens) for rows in step.slots}) == 1
        assert [rows.slot - step.slots[0].slot for rows in step.slots] == [*range(len(step.slots))]
    counts = scheduler.counts
    assert counts.decoded == sum(lengths)
    assert counts.prefilled == sum(len(p) - 1 for p in prompts) + sum(lengths) - counts.decoded - (
        counts.shared
    )


def test_a_common_beginning_is_computed_once() -> None:
    limits = Limits(n_ctx=700, n_slots=8)
    common = list(range(1000, 1512))
    prompts = [[*common, i, i, i] for i in range(64)]
    scheduler = Scheduler(limits)
    run(scheduler, Cache(limits), prompts, [20] * 64)
    # of each prompt the last token is fed with the tokens that are drawn
    assert scheduler.counts.prefilled == 512 + 64 * 2
    assert scheduler.counts.shared == 63 * 512


def test_samples_of_one_prompt_share_it() -> None:
    limits = Limits(n_ctx=256, n_slots=8)
    prompt = list(range(100))
    scheduler = Scheduler(limits)
    run(scheduler, Cache(limits), [prompt] * 5, [10] * 5)
    assert scheduler.counts.prefilled == 99


def test_a_finished_sequence_is_replaced_at_once() -> None:
    limits = Limits(n_ctx=256, n_slots=8)
    scheduler = Scheduler(limits)
    lengths = [5 if i % 8 == 0 else 60 for i in range(24)]
    _written, steps = run(scheduler, Cache(limits), [[i, i, i] for i in range(24)], lengths)
    # two free slots at most, for a step, while more prompts are waiting
    drawing = [sum(rows.n_wanted for rows in step.slots) for step in steps if step.outputs]
    assert min(drawing[:60]) >= 7


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    limits = Limits(n_ctx=4000, n_slots=8, chunk=100)
    scheduler = Scheduler(limits)
    prompts = [*([[i] * 4 for i in range(7)]), list(range(3000))]
    _written, steps = run(scheduler, Cache(limits), prompts, [200] * 8)
    longest = rows = 0
    for step in steps[3:]:
        rows = 0 if step.outputs else rows + step.n_rows
        longest = max(longest, rows)
    assert longest <= 100 + MOST_ROWS_OF_SLOT


def test_the_last_sequences_move_together() -> None:
    limits = Limits(n_ctx=256, n_slots=32)
    scheduler = Scheduler(limits)
    lengths = [100 if i in (0, 31) else 3 for i in range(32)]
    _written, steps = run(scheduler, Cache(limits), [[i, i] for i in range(32)], lengths)
    assert steps[-1].n_rows <= LEAST_ROWS


def test_several_rows_of_a_sequence_with_logits() -> None:
    scheduler = Scheduler(Limits(n_ctx=64, n_slots=8))
    assert scheduler.admit([1, 2, 3]) is not None
    prefill = scheduler.next_step()
    assert prefill is not None and not prefill.outputs
    scheduler.computed(prefill)
    scheduler.push(0, [3, 7, 8, 9], n_wanted=4)
    step = scheduler.next_step()
    assert step is not None and step.outputs
    mine = step.slots[0]
    assert (mine.tokens, mine.n_real, mine.n_wanted) == ((3, 7, 8, 9), 4, 4)
    scheduler.computed(step)
    scheduler.cut(0, 4)  # two of three proposals were wrong
    assert list(scheduler.held(0)) == [1, 2, 3, 7]


@pytest.mark.parametrize("length", [0, 1, 5, 63, 64, 100])
def test_shared_prefix(length: int) -> None:
    one = list(range(100))
    assert shared_prefix(one, [*one[:length], -1, *one[length:]]) == length


def test_slots_come_in_steps() -> None:
    assert [slots_for(n) for n in (1, 5, 8, 9, 12, 13, 32, 255)] == [1, 5, 8, 12, 12, 16, 32, 256]


def most_outputs(n_slots: int, bounds: Bounds, seed: int, *, guesses: bool) -> int:
    """The widest step with logits of a run as the engine makes it, whose sequences come and go."""
    chance = random.Random(seed)
    scheduler = Scheduler(Limits(n_ctx=64, n_slots=n_slots, bounds=bounds))
    waiting = 2 * n_slots
    most = 0
    for _ in range(10_000):
        while waiting and scheduler.admit([chance.randrange(3) for _ in range(3)]):
            waiting -= 1
        if not waiting:
            scheduler.move()
        step = scheduler.next_step()
        if step is None:
            return most
        most = max(most, step.n_rows if step.outputs else 0)
        scheduler.computed(step)
        for rows in step.slots:
            if not rows.n_wanted:
                continue
            if rows.position > 50 or chance.random() < 0.4:
                scheduler.release(rows.slot)
                continue
            n_right = chance.randrange(rows.n_wanted)
            scheduler.cut(rows.slot, len(scheduler.held(rows.slot)) - rows.n_wanted + 1 + n_right)
            spare = scheduler.spare_rows(more=waiting > 0) if guesses else 0
            n = 1 + chance.randint(0, spare)
            scheduler.push(rows.slot, [7] * n, n)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("bounds", [STOCK, UNBOUND], ids=["stock", "unbound"])
@pytest.mark.parametrize("guesses", [False, True], ids=["plain", "guesses"])
def test_no_step_wants_more_logits_than_are_reserved(bounds: Bounds, guesses: bool) -> None:
    few = [n for n in range(1, 25) for _ in range(4)]
    for seed, n_slots in enumerate([*few, 25, 36, 37, 64, 129]):
        most = most_outputs(n_slots, bounds, seed, guesses=guesses)
        assert most <= output_rows(n_slots), (n_slots, seed)


def test_what_is_reserved_is_needed() -> None:
    for n_slots in range(1, 25):
        seen = (
            most_outputs(n_slots, STOCK, seed, guesses=guesses)
            for seed in range(400) for guesses in (True, False)
        )  # fmt: skip
        assert any(most == output_rows(n_slots) for most in seen), n_slots
    # where there are many sequences, a row each
    assert all(output_rows(n) == n for n in range(16, 257, ROWS_STEP))


def score(
    scheduler: Scheduler, cache: Cache, paths: Sequence[tuple[list[int], int]]
) -> tuple[list[list[int]], list[Step]]:
    """Feed every path; returns the positions of each that got logits, and the steps."""
    waiting, running = list(range(len(paths))), dict[int, int]()
    scored: list[list[int]] = [[] for _ in paths]
    steps: list[Step] = []
    for _ in range(10_000):
        while waiting and (place := scheduler.admit(*paths[waiting[0]])):
            if place.source is not None:
                cache.rows[place.slot] = list(cache.rows[place.source])
            del cache.rows[place.slot][place.n_kept :]
            running[place.slot] = waiting.pop(0)
        step = scheduler.next_step()
        if step is None:
            break
        steps.append(step)
        cache.decode(step)
        scheduler.computed(step)
        for rows in step.slots:
            if not rows.n_wanted:
                continue
            last = rows.position + rows.n_real
            scored[running[rows.slot]] += range(last - rows.n_wanted, last)
            if last < len(paths[running[rows.slot]][0]):
                continue
            assert cache.rows[rows.slot] == paths[running.pop(rows.slot)][0]
            scheduler.release(rows.slot)
            del cache.rows[rows.slot][len(scheduler.held(rows.slot)) :]
    assert not waiting and not running
    return scored, steps


@pytest.mark.parametrize("n_slots", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("bounds", [STOCK, UNBOUND], ids=["stock", "unbound"])
def test_all_wanted_rows_of_prompts_get_logits_once(n_slots: int, bounds: Bounds) -> None:
    chance = random.Random(n_slots)
    limits = Limits(200, n_slots, bounds=bounds, n_outputs=max(48, output_rows(n_slots)))
    common = [chance.randrange(9) for _ in range(120)]
    paths = []
    for length in [200, 199, 193, 20, 100, 1, 2, 200] * 3:
        tokens = [*common[: chance.randrange(121)], *(chance.randrange(9) for _ in range(200))]
        paths.append((tokens[:length], chance.choice([1, (length + 1) // 2, length])))
    scored, steps = score(Scheduler(limits), Cache(limits), paths)
    for (tokens, n_wanted), positions in zip(paths, scored, strict=True):
        assert positions == list(range(len(tokens) - n_wanted, len(tokens)))
    for step in steps:
        assert step.n_rows <= (limits.n_outputs if step.outputs else 512)
        # within the bounds to the very end of the context
        assert step.n_rows >= bounds.least_rows and step.n_rows % bounds.rows_step == 0
        assert all(len(rows.tokens) <= bounds.most_of_slot for rows in step.slots)
        assert len({len(rows.tokens) for rows in step.slots}) == 1


def test_a_prompt_takes_the_place_of_one_that_begins_alike() -> None:
    limits = Limits(64, 8)
    scheduler, cache = Scheduler(limits), Cache(limits)
    assert scheduler.admit([1, 2, 3, 4, 5], 2) is not None
    for _ in range(2):
        step = scheduler.next_step()
        assert step is not None
        cache.decode(step)
        scheduler.computed(step)
    assert scheduler.replace(0, [1, 2, 3, 9, 8, 7], 2) == 3
    assert list(scheduler.held(0)) == [1, 2, 3]
    # what is held has no logits: a row that is wanted is fed again
    assert scheduler.replace(0, [1, 2, 3, 4], 3) == 1
    assert scheduler.counts.shared == 4


def test_wanted_rows_of_a_prompt_are_no_guesses() -> None:
    scheduler = Scheduler(Limits(64, 8))
    assert scheduler.admit(list(range(20)), 20) is not None
    assert scheduler.admit([7, 8]) is not None
    assert scheduler.drop_guesses() == []
    step = scheduler.next_step()
    while step is not None and not step.slots[0].n_wanted:
        scheduler.computed(step)
        step = scheduler.next_step()
    assert step is not None and step.slots[0].n_wanted > 1


def test_sequences_go_on_while_rows_of_a_prompt_are_scored() -> None:
    limits = Limits(300, 3, n_outputs=48, chunk=96)
    scheduler, cache = Scheduler(limits), Cache(limits)

    def stepped() -> Step:
        step = scheduler.next_step()
        assert step is not None and step.n_rows <= limits.n_outputs
        cache.decode(step)
        scheduler.computed(step)
        return step

    assert scheduler.admit([1, 2, 3]) and scheduler.admit([1, 2, 4]) and scheduler.admit([5])
    while not any(rows.n_wanted for rows in stepped().slots):
        pass
    # the one in the middle goes on, with guesses; the others are prompts that are scored whole
    for slot in (0, 2):
        scheduler.release(slot)
        cache.rows[slot].clear()
        assert scheduler.admit([9] * 200, 200) is not None
    scored, drawn = {0: 0, 2: 0}, 0
    while any(n < 200 for n in scored.values()):
        if not scheduler._slots[1].todo:
            scheduler.push(1, [7, 7], 2)
        for rows in stepped().slots:
            if rows.slot == 1 and rows.n_wanted:
                assert rows.n_wanted == 2  # all of them in one step, or none
                drawn += 1
            elif rows.n_wanted:
                scored[rows.slot] += rows.n_wanted
    assert scored == {0: 200, 2: 200}
    assert drawn >= 4


def busy_but_one(limits: Limits) -> Scheduler:
    """A scheduler whose slots all draw, but the first, which gets a prompt that is scored."""
    scheduler = Scheduler(limits)
    for _ in range(limits.n_slots):
        assert scheduler.admit([5]) is not None
    step = scheduler.next_step()
    assert step is not None
    scheduler.computed(step)
    scheduler.release(0)
    return scheduler


def test_a_prompt_is_scored_in_few_steps_whatever_else_is_drawn() -> None:
    scheduler = busy_but_one(Limits(300, 8, n_outputs=64))
    assert scheduler.admit([9] * 200, 200) is not None
    n_steps = 0
    while len(scheduler.held(0)) < 200:
        n_steps += 1
        for slot in range(1, 8):
            if not scheduler._slots[slot].todo:
                scheduler.push(slot, [7])
        step = scheduler.next_step()
        assert step is not None
        scheduler.computed(step)
    assert n_steps < 10


def test_what_is_wanted_at_once_is_not_cut_by_a_lower_step() -> None:
    scheduler = busy_but_one(Limits(300, 8, bounds=UNBOUND))
    for slot in range(1, 8):
        scheduler.release(slot)
    scheduler.push(3, [7, 7, 7], 3)
    scheduler._slots[3].busy = True
    for n in (2, 1, 1, 1, 1, 1, 1):
        assert scheduler.admit([9] * n, n) is not None
    step = scheduler.next_step()
    assert step is not None
    (rows,) = (rows for rows in step.slots if rows.slot == 3)
    assert len(rows.tokens) < 3 and (rows.n_wanted, rows.n_real) == (0, 0)
    scheduler.computed(step)
    assert scheduler._slots[3].todo == [7, 7, 7]


def test_a_prompt_waits_for_none_of_another_adapter() -> None:
    scheduler = Scheduler(Limits(64, 8))
    assert scheduler.admit(range(40), adapter="a") is not None
    assert scheduler.admit(range(40), adapter="a") is None  # what it shares is about to be there
    place = scheduler.admit(range(40), adapter="b")
    assert place is not None and place.source is None and place.n_kept == 0


@pytest.mark.parametrize("bounds", [STOCK, UNBOUND])
@pytest.mark.parametrize("seed", range(6))
def test_adapters_take_turns_and_share_nothing(seed: int, bounds: Bounds) -> None:
    """Each slot's rows are computed with its own adapter, up to the end of its context."""
    chance = random.Random(seed)
    n_slots = chance.choice([1, 3, 6, 9])
    limits = Limits(n_ctx=60, n_slots=n_slots, bounds=bounds)
    scheduler, cache = Scheduler(limits), Cache(limits)
    # of every row, the adapter that it was computed with
    adapters: list[list[str]] = [[] for _ in range(n_slots)]
    common = [chance.randrange(9) for _ in range(30)]
    waiting = [
        (common[: chance.randrange(10, 31)], chance.choice(["", "a", "b"])) for _ in range(40)
    ]
    running: dict[int, tuple[str, list[int], int]] = {}
    turns: list[str] = []
    n_moved = 0
    while waiting or running:
        while waiting and (place := scheduler.admit(waiting[0][0], adapter=waiting[0][1])):
            prompt, name = waiting.pop(0)
            if place.source is not None:
                cache.rows[place.slot] = list(cache.rows[place.source])
                adapters[place.slot] = list(adapters[place.source])
            del cache.rows[place.slot][place.n_kept :], adapters[place.slot][place.n_kept :]
            assert set(adapters[place.slot]) <= {name}
            running[place.slot] = (name, list(prompt), chance.choice([3, 60]))
        step = scheduler.next_step()
        assert step is not None
        turns.append(step.adapter)
        for rows in step.slots:
            name = running[rows.slot][0] if rows.slot in running else None
            if name not in (None, step.adapter):
                assert rows.n_real == rows.n_wanted == 0
                # what made room for fillers is computed again, later
                n_moved += rows.n_again
            del adapters[rows.slot][rows.position :]
            adapters[rows.slot] += [step.adapter] * rows.n_real
        for rows in step.slots:
            held = cache.rows[rows.slot]
            assert rows.position == len(held) - rows.n_again
            del held[rows.position :]
            held.extend(rows.tokens)
            assert len(held) <= limits.n_ctx
            del held[rows.position + rows.n_real :]
        scheduler.computed(step)
        for rows in step.slots:
            assert list(scheduler.held(rows.slot)) == cache.rows[rows.slot]
            if not rows.n_wanted:
                continue
            name, written, n = running[rows.slot]
            assert cache.rows[rows.slot] == written
            assert set(adapters[rows.slot]) == {name}
            written.append(chance.randrange(9))
            if len(written) > limits.n_ctx or n <= 1:
                scheduler.release(rows.slot)
                del running[rows.slot]
                for kept in (cache.rows, adapters):
                    del kept[rows.slot][len(scheduler.held(rows.slot)) :]
            else:
                running[rows.slot] = (name, written, n - 1)
                scheduler.push(rows.slot, written[-1:])
    assert set(turns) == {"", "a", "b"}
    if n_slots > 3 and bounds is STOCK:
        assert n_moved
