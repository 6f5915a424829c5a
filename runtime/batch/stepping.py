"""Compute a step of the scheduler: its rows as arrays, and what is forgotten before and after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infer_os.native.batch_context import BatchContext, Rows

from .scheduler import Step


def compute_step(
    context: BatchContext, step: Step, begins: Callable[[], None] | None = None
) -> None:
    """Decode a step's rows; afterwards each sequence holds those of them that stay.

    ``begins`` is called just before other threads have Python for themselves.

    Raises:
        As :meth:`~infer_os.native.batch_context.BatchContext.decode`.
    """
    for rows in step.slots:
        if rows.n_again:
            context.trim(rows.slot, rows.position)
    arrays = _arrays(step)
    context.use_adapter(step.adapter)
    if begins is not None:
        begins()
    context.decode(arrays)
    for rows in step.slots:
        if rows.n_real < len(rows.tokens):
            context.trim(rows.slot, rows.position + rows.n_real)


def _arrays(step: Step) -> Rows:
    """A step's rows, slot by slot."""
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    for rows in step.slots:
        n = len(rows.tokens)
        tokens += rows.tokens
        positions += range(rows.position, rows.position + n)
        sequences += [rows.slot] * n
    return Rows(
        np.array(tokens, np.int32), np.array(positions, np.int32), np.array(sequences, np.int32),
        np.full(len(tokens), step.outputs, np.int8),
    )  # fmt: skip
