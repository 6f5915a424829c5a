"""The rows of the types of weights, and what is derived from them elsewhere."""

from __future__ import annotations

import pytest

from infer_os.convert.errors import UnsupportedError
from infer_os.convert.settings import refuse_idle_weights
from infer_os.convert.types import fitting_type
from infer_os.models.weight_types import RECIPES, TENSOR_TYPES, Layout
from infer_os.native.cpu import AMX, repacked_types
from infer_os.runtime.plan.choice import CHOSEN_TYPES

FEATURES = {
    Layout.AVX2: ("REPACK", "AVX2"), Layout.NEON: ("REPACK", "NEON", "DOTPROD"),
    Layout.AMX: (AMX, "AVX512_VNNI"),
}  # fmt: skip


def test_rows_have_the_names_that_they_are_found_by() -> None:
    assert all(name == row.name for name, row in (*TENSOR_TYPES.items(), *RECIPES.items()))
    assert len({recipe.file_type for recipe in RECIPES.values()}) == len(RECIPES)
    assert all(recipe.base in TENSOR_TYPES for recipe in RECIPES.values())


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_rows_of_any_length_have_a_type(name: str) -> None:
    assert TENSOR_TYPES[fitting_type(name, 7)].is_float
    assert fitting_type(name, 7 * 256) == name
    assert TENSOR_TYPES[fitting_type(name, 7 * 32)].block <= 32


@pytest.mark.parametrize("layout", Layout)
def test_a_cpu_has_the_layouts_of_its_instructions(layout: Layout) -> None:
    types = repacked_types(FEATURES[layout])
    assert types == {row.name for row in TENSOR_TYPES.values() if layout in row.layouts}
    assert types


def test_only_the_chosen_are_chosen_from_the_finest_first() -> None:
    assert CHOSEN_TYPES == ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m")


@pytest.mark.parametrize("name", RECIPES)
def test_importance_is_refused_where_no_quantizer_weighs(name: str) -> None:
    if name in ("f32", "f16", "bf16", "q8_0"):
        with pytest.raises(UnsupportedError, match="has no effect"):
            refuse_idle_weights("--imatrix", name)
    else:
        refuse_idle_weights("--imatrix", name)
