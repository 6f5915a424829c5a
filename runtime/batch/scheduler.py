"""Which rows the next decode computes: a state machine without a model.

There are ``n_slots`` slots, each a sequence of the cache. A slot holds tokens and has others to
feed; those at the end whose logits are wanted (the last one, or several that a draft proposed) are
fed in *decode* steps, all before them in *prefill* steps. A step computes a rectangle: neighbouring
slots with the same number of rows, since llama.cpp computes that at once. Rows that have nothing to
compute are fillers, which are trimmed afterwards.

Results must not depend on what else is in a step, so a step keeps to the bounds within which
llama.cpp's CPU kernels compute a row alike (docs/batch.md): at least :data:`LEAST_ROWS` rows, a
multiple of :data:`ROWS_STEP`, and fewer than 64 of each sequence.

A step computes with one adapter, or with none, and adapters take turns. Slots of others may lie in
its rectangle, but have fillers alone. Nothing is shared between slots of different adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..interface import shared_prefix
from ..plan.step_rows import LEAST_ROWS, STOCK, Bounds, decode_width, whole_height

#: Tokens of a common prefix that are worth waiting for, or copying a sequence for.
WORTH_SHARING = 16
#: What a step costs apart from its rows, in rows; decides between few wide and many narrow steps.
_STEP_COST = 12
FILLER = 0
#: Steps after which another adapter has its turn, since a change of it costs a millisecond or more.
_TURN = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """``n_ctx`` tokens per slot, ``n_batch`` rows per step, ``chunk`` prefill rows in between.

    ``n_outputs`` rows of a step can have logits, where that is fewer.
    """

    n_ctx: int
    n_slots: int
    n_batch: int = 512
    chunk: int = 512
    bounds: Bounds = STOCK
    n_outputs: int = 512


class SlotRows(NamedTuple):
    """Rows of one slot: ``tokens`` from ``position`` on, of which the first ``n_real`` stay.

    The last ``n_wanted`` of the real ones get logits for the slot's sequence. The first ``n_again``
    are held already: the caller forgets them before the step, which computes them again; or a later
    one does, where the step's adapter is not the slot's.
    """

    slot: int
    position: int
    tokens: tuple[int, ...]
    n_real: int
    n_wanted: int = 0
    n_again: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One decode. In one with ``outputs`` every row gets logits, in the order of the rows.

    ``adapter`` is what it is computed with.
    """

    slots: tuple[SlotRows, ...]
    outputs: bool
    adapter: str = ""

    @property
    def n_rows(self) -> int:
        """Rows in all, fillers included."""
        return sum(len(rows.tokens) for rows in self.slots)


@dataclass(frozen=True, slots=True)
class Admission:
    """Where a prompt goes. ``n_kept`` of its tokens are already there, or copied from a slot."""

    slot: int
    n_kept: int
    source: int | None = None


@dataclass(slots=True)
class Counts:
    """Rows by their use."""

    prefilled: int = 0
    decoded: int = 0
    fillers: int = 0
    shared: int = 0
    steps: int = 0


@dataclass(slots=True)
class _Slot:
    """``todo`` is fed next, and logits of its last ``n_wanted`` are wanted, ``at_once`` or not."""

    held: list[int] = field(default_factory=list)
    todo: list[int] = field(default_factory=list)
    n_wanted: int = 1
    busy: bool = False
    at_once: bool = True
    adapter: str = ""

    @property
    def n_prefill(self) -> int:
        return max(0, len(self.todo) - self.n_wanted)

    @property
    def is_ready(self) -> bool:
        return 0 < len(self.todo) <= self.n_wanted


class Scheduler:
    """Slots, what they hold, and what comes next. ``counts`` says what was computed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.counts = Counts()
        self.clear()

    def clear(self) -> None:
        """Begin with empty slots; the caller empties the cache likewise."""
        self._slots = [_Slot() for _ in range(self._limits.n_slots)]
        self._budget = self._limits.chunk
        # whose turn it is, and for how many steps more
        self._adapter, self._n_steps = "", 0

    @property
    def n_busy(self) -> int:
        """Slots with a sequence."""
        return sum(slot.busy for slot in self._slots)

    def held(self, slot: int) -> Sequence[int]:
        """Tokens that a slot's part of the cache holds."""
        return self._slots[slot].held

    def held_with(self, slot: int, adapter: str) -> Sequence[int]:
        """The same, if they were computed with this adapter; else none."""
        return self._slots[slot].held if self._slots[slot].adapter == adapter else ()

    def hold(self, slot: int, tokens: Sequence[int], adapter: str = "") -> None:
        """A free slot's part of the cache holds these tokens; the caller has put them there."""
        self._slots[slot].held = list(tokens)
        self._slots[slot].adapter = adapter

    def admit(
        self, prompt: Sequence[int], n_wanted: int = 1, adapter: str = ""
    ) -> Admission | None:
        """Give a prompt a slot; None if none is free, or if it should wait.

        It waits while another slot is about to compute a common prefix. The caller copies and trims
        the cache as the answer says, before the next step. The logits of the last ``n_wanted``
        tokens are wanted, in one step or in several. All is computed with ``adapter``.
        """
        prompt = list(prompt)
        free = [i for i, slot in enumerate(self._slots) if not slot.busy]
        if not free:
            return None
        most = len(prompt) - n_wanted  # what is held has no logits any more
        kept = {
            i: min(most, shared_prefix(self.held_with(i, adapter), prompt))
            for i in range(len(self._slots))
        }
        coming = max(
            (
                min(most, shared_prefix([*s.held, *s.todo[: s.n_prefill]], prompt))
                for s in self._slots if s.n_prefill and s.adapter == adapter
            ),
            default=0,
        )  # fmt: skip
        best = max(kept, key=lambda i: kept[i])
        if coming >= WORTH_SHARING and coming > kept[best]:
            return None
        # among equally good ones the first, so that busy slots are neighbours
        slot = max(free, key=lambda i: (kept[i], -len(self._slots[i].held), -i))
        source = None
        if kept[best] - kept[slot] >= WORTH_SHARING:
            source = best
            self._slots[slot].held = list(self._slots[best].held[: kept[best]])
        n_kept = kept[best] if source is not None else kept[slot]
        self._slots[slot].adapter = adapter
        self._feed(slot, prompt, n_kept, n_wanted)
        return Admission(slot, n_kept, source)

    def _feed(self, slot: int, prompt: list[int], n_kept: int, n_wanted: int) -> None:
        """A slot holds the first ``n_kept`` tokens of a prompt, and gets the others next."""
        chosen = self._slots[slot]
        del chosen.held[n_kept:]
        chosen.todo = prompt[n_kept:]
        chosen.n_wanted, chosen.busy, chosen.at_once = n_wanted, True, False
        self.counts.shared += n_kept

    def replace(self, slot: int, prompt: Sequence[int], n_wanted: int) -> int:
        """Give a slot another prompt, whose beginning it holds; returns how much of it is kept.

        The caller trims the cache to that, before the next step.
        """
        prompt = list(prompt)
        n_kept = min(len(prompt) - n_wanted, shared_prefix(self._slots[slot].held, prompt))
        self._feed(slot, prompt, n_kept, n_wanted)
        return n_kept

    def push(self, slot: int, tokens: Sequence[int], n_wanted: int = 1) -> None:
        """Feed tokens next; the logits of the last ``n_wanted`` are wanted, all in one step."""
        fed = self._slots[slot]
        fed.todo, fed.n_wanted, fed.at_once = list(tokens), n_wanted, True

    def spare_rows(self, *, more: bool) -> int:
        """Rows of each sequence that a step would fill, apart from those of its next tokens.

        ``more``: whether free slots may get a prompt before that step.
        """
        busy = [i for i, slot in enumerate(self._slots) if slot.busy]
        if not busy:
            return 0
        width = self._limits.n_slots if more else busy[-1] - busy[0] + 1
        return max(0, LEAST_ROWS // width - 1)

    def drop_guesses(self) -> list[int]:
        """Feed no guesses for which a prompt that came meanwhile leaves no row.

        Returns:
            The slots that had some.
        """
        most = 1 + self.spare_rows(more=False)
        slots = enumerate(self._slots)
        dropped = [i for i, slot in slots if slot.at_once and slot.n_wanted > most]
        for i in dropped:
            slot = self._slots[i]
            del slot.todo[len(slot.todo) - slot.n_wanted + 1 :]
            slot.n_wanted = 1
        return dropped

    def cut(self, slot: int, n_tokens: int) -> None:
        """A slot holds only its first tokens; the caller trims the cache likewise."""
        del self._slots[slot].held[n_tokens:]

    def release(self, slot: int) -> None:
        """A slot's sequence has ended; what it holds stays for a prompt with a common prefix.

        A full one is cut, to make room for fillers; the caller trims the cache to what is then
        :meth:`held`.
        """
        ended = self._slots[slot]
        ended.busy, ended.todo, ended.n_wanted = False, [], 1
        del ended.held[max(0, self._limits.n_ctx - LEAST_ROWS) :]

    def move(self) -> tuple[int, int] | None:
        """Bring the last busy slot nearer to the others, when no more prompts come.

        The caller copies the cache of the first slot named to the second, and empties the first;
        None if it is not worth it. The rows between busy slots would all be fillers.
        """
        busy = [i for i, slot in enumerate(self._slots) if slot.busy]
        n_wide = max(len(busy), LEAST_ROWS)
        if not busy or busy[-1] - busy[0] + 1 < n_wide + LEAST_ROWS:
            return None
        source = busy[-1]
        # the free slot nearest to the first busy one
        target = min((i for i in range(source) if i not in busy), key=lambda i: abs(i - busy[0]))
        self._slots[target], self._slots[source] = self._slots[source], _Slot()
        return source, target

    def next_step(self) -> Step | None:
        """What to compute now; None if there is nothing to do.

        Prompts are computed as far as the chunk goes, with logits or without, then every sequence
        gets its next token.
        """
        self._take_turns()
        mine = [(i, s) for i, s in enumerate(self._slots) if s.adapter == self._adapter]
        ready = [i for i, slot in mine if slot.is_ready]
        waiting = [i for i, slot in mine if slot.n_prefill]
        if waiting and (self._budget > 0 or not ready):
            step = self._prefill(waiting)
            self._budget -= step.n_rows
            return step
        scored = [i for i in ready if not self._slots[i].at_once]
        drawn = [i for i in ready if self._slots[i].at_once]
        if drawn and any(len(self._slots[i].todo) > 1 for i in scored):
            # many rows of a prompt have logits: as for other prompts, the others wait a little
            if self._budget > 0:
                step = self._decode(scored)
                self._budget -= step.n_rows
                return step
            ready = drawn
        self._budget = self._limits.chunk
        return self._decode(ready) if ready else None

    def _take_turns(self) -> None:
        """Whose adapter the next step is computed with: the same for a few steps, then another."""
        adapters = sorted({slot.adapter for slot in self._slots if slot.todo})
        if self._adapter not in adapters or (self._n_steps <= 0 and len(adapters) > 1):
            later = (adapter for adapter in adapters if adapter > self._adapter)
            self._adapter = next(later, adapters[0] if adapters else "")
            self._n_steps, self._budget = _TURN, self._limits.chunk
        self._n_steps -= 1

    def _prefill(self, waiting: list[int]) -> Step:
        """The most useful rectangle, per row, over the first run of neighbours."""
        run = [waiting[0]]
        for slot in waiting[1:]:
            if slot != run[-1] + 1 or len(run) >= self._limits.n_batch // LEAST_ROWS:
                break
            run.append(slot)
        rests = [self._slots[i].n_prefill for i in run]
        bounds = self._limits.bounds
        step = bounds.rows_step
        most = min(bounds.most_of_slot, self._limits.n_batch // len(run) // step * step)
        height = self._best_height(rests, {min(rest, most) for rest in rests}, len(run))
        return self._rectangle(run, height, outputs=False)

    @staticmethod
    def _best_height(rests: list[int], heights: set[int], width: int) -> int:
        """Of the heights that a step of so many slots may have, the one that does most per row."""

        def worth(height: int) -> float:
            useful = sum(min(rest, height) for rest in rests)
            return useful / (_STEP_COST + height * width)

        return max(heights, key=lambda height: (worth(height), height))

    def _decode(self, ready: list[int]) -> Step:
        """From the first ready slot to the last; those between go on with what they have."""
        first, last = ready[0], ready[-1]
        height = self._output_height(ready)
        # neighbours as fillers, as far as there are any
        n_slots = self._limits.n_slots
        wanted = decode_width(last - first + 1, height, n_slots, self._limits.bounds)
        last = min(n_slots - 1, first + wanted - 1)
        first = max(0, last + 1 - wanted)
        return self._rectangle(list(range(first, last + 1)), height, outputs=True)

    def _output_height(self, ready: list[int]) -> int:
        """Rows of each slot in a step with logits: all that are wanted at once, or more."""
        slots = [self._slots[i] for i in ready]
        at_once = [len(slot.todo) for slot in slots if slot.at_once]
        rests = [len(slot.todo) for slot in slots if not slot.at_once]
        least = max(at_once, default=1)
        if not rests:
            return least
        span = ready[-1] - ready[0] + 1
        most = self._most_outputs_of_slot(span)
        return self._best_height(
            [*rests, *at_once], {max(least, min(n, most)) for n in rests}, span
        )

    def _most_outputs_of_slot(self, span: int) -> int:
        """Rows that each of so many slots may have with logits."""
        bounds, n_slots = self._limits.bounds, self._limits.n_slots
        most = min(bounds.most_of_slot, self._limits.n_outputs // span)
        while most > 1:
            width = decode_width(span, most, n_slots, bounds)
            if whole_height(most, width, bounds) * width <= self._limits.n_outputs:
                break
            most -= 1
        return max(1, most)

    def _rectangle(self, run: list[int], height: int, *, outputs: bool) -> Step:
        n_ctx = self._limits.n_ctx
        height = whole_height(height, len(run), self._limits.bounds)
        rows = []
        for i in run:
            slot = self._slots[i]
            is_mine = slot.adapter == self._adapter
            fits = not slot.at_once or len(slot.todo) <= height
            drawing = outputs and slot.is_ready and fits and is_mine
            tokens = slot.todo[: height if drawing else min(slot.n_prefill, height)]
            n_held, wanted = len(slot.held), len(tokens) if drawing else 0
            # where a slot has no place for fillers, its last tokens are computed once more
            again = max(0, min(n_held, n_held + height - n_ctx))
            tokens = slot.held[n_held - again :] + tokens if is_mine else []
            n_real = len(tokens)
            if n_real < height:
                tokens += [FILLER] * min(height - n_real, n_ctx - n_held + again - n_real)
            if tokens:
                rows.append(SlotRows(i, n_held - again, tuple(tokens), n_real, wanted, again))
        return Step(tuple(rows), outputs, self._adapter)

    def computed(self, step: Step) -> None:
        """A step is done: its real rows are held now."""
        counts = self.counts
        counts.steps += 1
        for rows in step.slots:
            slot = self._slots[rows.slot]
            if rows.n_again > rows.n_real:
                self._compute_later(slot, rows.n_again)
                continue
            n_new = rows.n_real - rows.n_again
            slot.held.extend(rows.tokens[rows.n_again : rows.n_real])
            del slot.todo[:n_new]
            if rows.n_wanted:
                slot.n_wanted -= n_new
            counts.fillers += len(rows.tokens) - n_new
            counts.decoded += rows.n_wanted
            counts.prefilled += n_new - rows.n_wanted

    @staticmethod
    def _compute_later(slot: _Slot, n: int) -> None:
        """Its last tokens made room for the fillers of another adapter's step."""
        at = len(slot.held) - n
        if slot.busy:
            slot.todo[:0] = slot.held[at:]
        del slot.held[at:]
