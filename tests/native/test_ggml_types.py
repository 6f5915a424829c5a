"""ggml's types as the library reports them, against the ``gguf`` package's table."""

from __future__ import annotations

import gguf
import pytest

from infer_os.models.weight_types import RECIPES, TENSOR_TYPES
from infer_os.native.ggml_types import ggml_type_named, ggml_types


def test_sizes_equal_the_gguf_package() -> None:
    common = {kind.value for kind in gguf.GGMLQuantizationType} & set(ggml_types())
    # the package still has q8_1 as it was with two float32 scales; nobody stores it
    common.remove(gguf.GGMLQuantizationType.Q8_1.value)
    assert len(common) > 30
    for number in common:
        kind = gguf.GGMLQuantizationType(number)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        known = ggml_types()[number]
        assert (known.name, known.block, known.bytes) == (kind.name.lower(), block, size)


def test_no_type_lies_beyond_those_that_are_read() -> None:
    # a newer ggml with more types must not pass unnoticed
    assert max(ggml_types()) >= max(kind.value for kind in gguf.GGMLQuantizationType)


def test_row_bytes() -> None:
    assert ggml_type_named("q4_0").row_bytes(64) == 36
    assert ggml_type_named("f16").row_bytes(7) == 14


def test_an_unknown_name() -> None:
    with pytest.raises(KeyError):
        ggml_type_named("q9_9")


def test_the_converters_tables_agree_with_ggml() -> None:
    for row in TENSOR_TYPES.values():
        known = ggml_type_named(row.name)
        assert (known.block, known.quantized) == (row.block, not row.is_float)
    for recipe in RECIPES.values():
        names = {recipe.base, recipe.head, *(finer.type for finer in recipe.finer)}
        assert names <= TENSOR_TYPES.keys()
    for row in TENSOR_TYPES.values():
        # any row length ends at a type that takes it
        while not row.is_float:
            smaller = TENSOR_TYPES[row.fallback]
            assert ggml_type_named(smaller.name).bytes / smaller.block >= (
                ggml_type_named(row.name).bytes / row.block
            )
            assert smaller.block <= row.block
            row = smaller
