"""Choose a type for every matrix so that a file stays within a size and loses the least.

Goes in: a limit, and what each matrix loses in each type (:mod:`.sensitivity`). Comes out: a recipe
that names the type of every matrix. The losses add up, so this is the multiple-choice knapsack
problem, which dynamic programming over the bytes solves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer_os.models.weight_types import RECIPES, Recipe

from .errors import UnsupportedError

#: What a matrix may become, the coarsest first.
CANDIDATES = ("iq2_xxs", "iq2_xs", "iq2_s", "q2_k", "iq3_xxs", "iq3_s", "q3_k", "iq4_xs", "iq4_nl",
              "q4_0", "q4_k", "q5_0", "q5_k", "q6_k", "q8_0")  # fmt: skip

# states of the dynamic program at most; sizes are rounded up to fit into so many
_MOST_STATES = 200_000
# llama.cpp's LLAMA_FTYPE numbers of the types that no recipe is named after
_FILE_TYPES = {"q2_k": 10, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq2_s": 28, "iq4_xs": 30}


@dataclass(frozen=True, slots=True)
class WeightBudget:
    """How large a file may be: so many ``bits`` per weight, or ``n_bytes``; the other is 0."""

    bits: float = 0.0
    n_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.n_bytes and not (math.isfinite(self.bits) and 0 < self.bits <= 8.5):
            raise UnsupportedError(f"--bits {self.bits:g}: expected a number from 2 to 8.5")

    @property
    def option(self) -> str:
        """As the user may write it."""
        return f"--size {self.label}" if self.n_bytes else f"--bits {self.bits:g}"

    @property
    def label(self) -> str:
        """For the name of a file; no other budget has it, down to the byte."""
        if not self.n_bytes:
            return f"{self.bits:g}bit"
        return f"{self.n_bytes / 1e6:.6f}".rstrip("0").rstrip(".") + "MB"


@dataclass(frozen=True, slots=True)
class Option:
    """A type that a matrix may have: its bytes, and the loss in nats per token."""

    type: str
    n_bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of every matrix, and what they lose together."""

    types: Mapping[str, str]
    n_bytes: int
    loss: float


def choose_types(options: Mapping[str, Sequence[Option]], most_bytes: int) -> Choice | None:
    """The types of least loss that take at most so many bytes together; None: there are none.

    Args:
        options: of every matrix, at least one.
        most_bytes: for all of them.
    """
    # of those with the same bytes the first best counts, so that the result is the same everywhere
    smallest = {name: min(o.n_bytes for o in found) for name, found in options.items()}
    room = most_bytes - sum(smallest.values())
    if room < 0:
        return None
    extras = [o.n_bytes - smallest[name] for name, found in options.items() for o in found]
    room = min(room, sum(max(o.n_bytes for o in f) - smallest[n] for n, f in options.items()))
    unit = max(math.gcd(*extras, 0) or 1, -(-room // _MOST_STATES))
    n_states = room // unit + 1
    losses = np.zeros(n_states)  # the least loss within so many units
    chosen: list[NDArray[np.int8]] = []
    for name, found in options.items():
        best = np.full(n_states, np.inf)
        which = np.zeros(n_states, np.int8)
        for number, option in enumerate(found):
            step = -(-(option.n_bytes - smallest[name]) // unit)
            if step < n_states:
                tried = losses[: n_states - step] + option.loss
                better = tried < best[step:]
                best[step:][better] = tried[better]
                which[step:][better] = number
        losses = best
        chosen.append(which)
    types: dict[str, str] = {}
    n_bytes, at = 0, n_states - 1
    for (name, found), which in zip(reversed(list(options.items())), reversed(chosen), strict=True):
        option = found[which[at]]
        types[name] = option.type
        n_bytes += option.n_bytes
        at -= -(-(option.n_bytes - smallest[name]) // unit)
    return Choice(dict(reversed(types.items())), n_bytes, float(losses[-1]))


def mixture_recipe(budget: WeightBudget, choice: Choice, sizes: Mapping[str, int]) -> Recipe:
    """The recipe of a choice; what it does not name is as in Q8_0.

    Args:
        budget: gives it its name.
        choice: the types.
        sizes: values of every matrix; the type of most of them becomes the file's.
    """
    values: dict[str, int] = {}
    for name, kind in choice.types.items():
        values[kind] = values.get(kind, 0) + sizes[name]
    most = max(values, key=lambda kind: values[kind])
    file_types = {recipe.base: recipe.file_type for recipe in RECIPES.values()} | _FILE_TYPES
    return Recipe(budget.label, "q8_0", file_types[most], "q8_0", False, types=choice.types)
