"""How many rows a step of a batch may have, and so how many of them a context must reserve.

Results must not depend on what else is in a step, so a step keeps to the bounds within which
llama.cpp's CPU kernels compute a row alike (docs/batch.md): at least :data:`LEAST_ROWS` rows, a
multiple of :data:`ROWS_STEP`, and fewer than 64 of each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

#: From 8 rows on llama.cpp takes its tiled matrix kernels, from 2 on its blocked ones.
LEAST_ROWS = 8
#: Repacked weights take four rows at once, and the remainder by another kernel.
ROWS_STEP = 4
#: Sequences of a batch that can have guesses: with more, a step has no row to spare.
MOST_GUESSING = LEAST_ROWS // 2
#: From 64 rows of a sequence on it takes its tiled attention.
MOST_ROWS_OF_SLOT = 56


#: Rows with logits that a step needs to be worth its weights' reading; more only cost memory.
SCORED_ROWS = 128


@dataclass(frozen=True, slots=True)
class Bounds:
    """A step's fewest rows, what they are a multiple of, and the most of one sequence."""

    least_rows: int
    rows_step: int
    most_of_slot: int


#: The bounds within which llama.cpp's kernels compute a row alike, and those of our kernels.
STOCK = Bounds(LEAST_ROWS, ROWS_STEP, MOST_ROWS_OF_SLOT)
UNBOUND = Bounds(1, 1, 256)


def decode_width(span: int, height: int, n_slots: int, bounds: Bounds) -> int:
    """Slots of a decode step whose ready ones are ``span`` wide and feed ``height`` tokens."""
    # several rows each make up for a width that is not a multiple
    whole = -(-span // bounds.rows_step) * bounds.rows_step if height == 1 else span
    return min(n_slots, max(-(-bounds.least_rows // height), whole))


def whole_height(height: int, width: int, bounds: Bounds) -> int:
    """Rows of each of ``width`` slots, so that the step keeps to the bounds."""
    height = max(height, -(-bounds.least_rows // width))
    while height * width % bounds.rows_step:
        height += 1
    return height


def output_rows(n_slots: int) -> int:
    """The most rows, all with logits, of any decode step with ``n_slots`` slots.

    Exact over both bounds; with guesses, of which :meth:`Scheduler.spare_rows` allows only as many
    as keep the ready slots and their guesses within :data:`LEAST_ROWS` rows. A context reserves
    and a plan counts this number.
    """
    most = 0
    for bounds in (STOCK, UNBOUND):
        for span in range(1, n_slots + 1):
            for height in range(1, max(1, LEAST_ROWS // span) + 1):
                width = decode_width(span, height, n_slots, bounds)
                most = max(most, width * whole_height(height, width, bounds))
    return most


def scoring_rows(n_slots: int) -> int:
    """The most rows with logits of a step that scores prompts; a step takes no more."""
    return max(SCORED_ROWS, output_rows(n_slots))


def _rounded(n: int) -> int:
    return -(-n // ROWS_STEP) * ROWS_STEP


def slots_for(parallel: int) -> int:
    """Slots for a number of sequences: above 8, a multiple of four."""
    return parallel if parallel <= LEAST_ROWS else _rounded(parallel)
