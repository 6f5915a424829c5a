"""The choice of types for a size: against every combination, and against the limits of a file."""

from __future__ import annotations

import itertools
import random

import pytest

from infer_os.convert import mixture as module
from infer_os.convert.errors import UnsupportedError
from infer_os.convert.mixture import Option, WeightBudget, choose_types, mixture_recipe
from infer_os.convert.sensitivity import Sensitivity
from infer_os.sizes import read_size

TYPES = ("q2_k", "q3_k", "q4_k", "q6_k")


def drawn(seed: int, n: int, unit: int) -> dict[str, tuple[Option, ...]]:
    rng = random.Random(seed)
    return {
        f"matrix {i}": tuple(
            Option(kind, unit * (rng.randrange(2, 12) + 8 * place), rng.random() / 4**place)
            for place, kind in enumerate(TYPES)
        )
        for i in range(n)
    }


def best_of_all(options: dict[str, tuple[Option, ...]], most: int) -> float | None:
    found = [
        sum(option.loss for option in combination)
        for combination in itertools.product(*options.values())
        if sum(option.n_bytes for option in combination) <= most
    ]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("unit", [1, 4096])
def test_no_combination_is_better(seed: int, unit: int) -> None:
    options = drawn(seed, 5, unit)
    for most in (unit * n for n in (10, 40, 60, 75, 90, 110, 140, 1000)):
        choice, best = choose_types(options, most), best_of_all(options, most)
        if best is None:
            assert choice is None
            continue
        assert choice is not None
        assert choice.loss == pytest.approx(best, rel=1e-12)
        chosen = [
            next(o for o in options[name] if o.type == kind) for name, kind in choice.types.items()
        ]
        assert list(choice.types) == list(options)
        assert sum(option.n_bytes for option in chosen) == choice.n_bytes <= most
        assert sum(option.loss for option in chosen) == pytest.approx(choice.loss)


def test_sizes_are_rounded_up_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_STATES", 50)
    options = drawn(3, 5, 997)
    for most in range(60 * 997, 140 * 997, 4001):
        choice, best = choose_types(options, most), best_of_all(options, most)
        assert choice is not None and best is not None
        assert choice.n_bytes <= most
        assert best <= choice.loss < 2 * best


def test_names() -> None:
    assert (WeightBudget(bits=3.25).label, WeightBudget(bits=3.25).option) == (
        "3.25bit", "--bits 3.25",
    )  # fmt: skip
    assert WeightBudget(n_bytes=10_000_000_000).label == "10000MB"


@pytest.mark.parametrize("text", ["2.6MB", "3MB", "2.600001MB", "0.5MB", "1234.5MB"])
def test_a_size_is_called_as_it_was_given(text: str) -> None:
    budget = WeightBudget(n_bytes=read_size(text) or 0)
    assert (budget.label, budget.option) == (text, f"--size {text}")


@pytest.mark.parametrize("bits", [0.0, -1.0, float("nan"), float("inf"), 8.6, 32.0, 100.0])
def test_numbers_that_are_no_bits(bits: float) -> None:
    with pytest.raises(UnsupportedError, match=r"--bits .*expected a number from 2 to 8.5"):
        WeightBudget(bits=bits)


def test_the_file_is_named_after_most_of_its_values() -> None:
    options = {"a": (Option("q4_k", 100, 0.1),), "b": (Option("q2_k", 200, 0.2),)}
    choice = choose_types(options, 300)
    assert choice is not None
    recipe = mixture_recipe(WeightBudget(bits=3), choice, {"a": 10, "b": 20})
    assert (recipe.name, recipe.file_type, dict(recipe.types)) == (
        "3bit", 10, {"a": "q4_k", "b": "q2_k"},
    )  # fmt: skip


def test_a_size_counts_every_matrix_at_its_place() -> None:
    """A file has tensors at multiples of 32 bytes; bits per weight are of the tensors alone."""
    options = {name: (Option("q8_0", 34, 0.0), Option("q4_0", 18, 1.0)) for name in ("a", "b")}
    found = Sensitivity(options, {"a": 32, "b": 32}, 64, 0, "")
    assert found.choose(WeightBudget(n_bytes=100 + 64 + 64), 100).types["a"] == "q8_0"
    mixed = found.choose(WeightBudget(n_bytes=100 + 64 + 63), 100)
    assert sorted(mixed.types.values()) == ["q4_0", "q8_0"] and mixed.n_bytes == 96
    least = found.choose(WeightBudget(n_bytes=100 + 64), 100)
    assert set(least.types.values()) == {"q4_0"}
    with pytest.raises(UnsupportedError, match=r"4\.50 bits per weight, 164 B"):
        found.choose(WeightBudget(n_bytes=100 + 63), 100)
    assert set(found.choose(WeightBudget(bits=8.5), 10**9).types.values()) == {"q8_0"}
