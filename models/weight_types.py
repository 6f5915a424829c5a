"""Types of weights: a row per type of a tensor, and a row per type of a file.

Sources in the pinned llama.cpp: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` in
src/llama-quant.cpp; ``ggml_repack_get_optimal_repack_type`` in ggml-cpu/repack.cpp and
``qtype_has_amx_kernels`` in ggml-cpu/amx/common.h for the layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from .network import Role


class Layout(Enum):
    """Instruction sets for which llama.cpp lays some types out in another order."""

    AVX2 = "AVX2"
    NEON = "NEON"
    AMX = "AMX"


_AVX2, _NEON, _AMX = Layout.AVX2, Layout.NEON, Layout.AMX


@dataclass(frozen=True, slots=True)
class TensorType:
    """A type of ggml's that weights have here.

    Args:
        name: ggml's, lower case.
        block: values per block.
        fallback: the next type of smaller blocks, for rows that do not divide into these; "" where
            any row does, or no file has it.
        is_weighted: its quantizer weighs values by their importance.
        is_column_by_column: llama.cpp computes products of a few columns one after the other, each
            as if alone, in the file's own layout (``runtime/speculative/rounding.py``).
        layouts: for which instruction sets llama.cpp has another layout.
    """

    name: str
    block: int
    fallback: str
    is_weighted: bool
    is_column_by_column: bool
    layouts: frozenset[Layout]

    @property
    def is_float(self) -> bool:
        """Whether values are floating-point numbers of their own, in no block."""
        return self.block == 1


def _row(
    name: str, block: int, fallback: str, *layouts: Layout, weighted: bool, alike: bool
) -> TensorType:
    return TensorType(name, block, fallback, weighted, alike, frozenset(layouts))


TENSOR_TYPES: dict[str, TensorType] = {
    row.name: row
    for row in (
        _row("f32", 1, "", weighted=False, alike=False),
        _row("f16", 1, "", weighted=False, alike=False),
        _row("bf16", 1, "", weighted=False, alike=False),
        _row("q8_0", 32, "f16", _NEON, _AMX, weighted=False, alike=True),
        _row("q6_k", 256, "q8_0", _NEON, _AMX, weighted=True, alike=True),
        _row("q5_k", 256, "q5_1", _NEON, _AMX, weighted=True, alike=True),
        _row("q5_1", 32, "f16", weighted=True, alike=False),
        _row("q5_0", 32, "f16", weighted=True, alike=True),
        _row("q4_k", 256, "q5_0", _AVX2, _NEON, _AMX, weighted=True, alike=True),
        _row("q4_1", 32, "f16", _AMX, weighted=True, alike=False),
        _row("q4_0", 32, "f16", _AVX2, _NEON, _AMX, weighted=True, alike=True),
        _row("q3_k", 256, "q4_0", weighted=True, alike=True),
        _row("iq4_nl", 32, "f16", _AVX2, _NEON, weighted=True, alike=False),
        _row("iq4_xs", 256, "iq4_nl", _AMX, weighted=True, alike=False),
        _row("iq3_s", 256, "iq4_nl", weighted=True, alike=True),
        _row("iq3_xxs", 256, "iq4_nl", weighted=True, alike=False),
        _row("q2_k", 256, "iq4_nl", weighted=True, alike=False),
        _row("iq2_s", 256, "iq4_nl", weighted=True, alike=False),
        _row("iq2_xs", 256, "iq4_nl", weighted=True, alike=False),
        _row("iq2_xxs", 256, "iq4_nl", weighted=True, alike=False),
    )
}


def _every_layer(layer: int, n_layer: int) -> bool:
    return True


def _first_eighth(layer: int, n_layer: int) -> bool:
    return layer < n_layer // 8


def _first_sixteenth(layer: int, n_layer: int) -> bool:
    return layer < n_layer // 16


def _outer_and_every_third(layer: int, n_layer: int) -> bool:
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True, slots=True)
class Finer:
    """Tensors of ``role`` get ``type`` in the layers that ``where`` picks."""

    role: Role
    type: str
    where: Callable[[int, int], bool] = _every_layer


@dataclass(frozen=True, slots=True)
class Recipe:
    """A file type: the type of most matrices, of the head, and the exceptions in order.

    Embeddings, the head, value and down projections decide most about quality and are few, so a
    mixture keeps them a step finer. The first exception that fits counts. The names are
    llama.cpp's; its own mixtures of these names are up to 4 % smaller: they keep the embedding at
    the base type, and a fused q, k, v at it or a step finer, which loses more (docs/gptq.md).

    Args:
        name: that of ``--type``, as llama.cpp spells it, lower case.
        base: type of most matrices.
        file_type: llama.cpp's LLAMA_FTYPE number.
        head: type of the head.
        is_chosen: ``--type auto`` chooses from it. Q8_0 stands for all above it: what it loses is
            not seen in any measure of quality, and F16 takes twice the memory and time.
        finer: the exceptions.
        types: of single tensors by name, before all else: what ``--bits`` chose.
    """

    name: str
    base: str
    file_type: int
    head: str
    is_chosen: bool
    finer: tuple[Finer, ...] = field(default=())
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_mixture(self) -> bool:
        """Whether it is named by the mixture and not by the type of most tensors."""
        return self.name != self.base

    @property
    def is_weighted(self) -> bool:
        """Whether an importance matrix changes what is written."""
        return TENSOR_TYPES[self.base].is_weighted


#: Every ``--type``, the finest first.
RECIPES: dict[str, Recipe] = {
    row.name: row
    for row in (
        Recipe("f32", "f32", 0, "f32", is_chosen=False),
        Recipe("f16", "f16", 1, "f16", is_chosen=False),
        Recipe("bf16", "bf16", 32, "bf16", is_chosen=False),
        Recipe("q8_0", "q8_0", 7, "q8_0", is_chosen=True),
        Recipe("q6_k", "q6_k", 18, "q6_k", is_chosen=True),
        Recipe("q5_k_m", "q5_k", 17, "q6_k", True, (
            Finer(Role.TOKEN_EMBEDDING, "q6_k"),
            Finer(Role.ATTN_QKV, "q6_k"),
            Finer(Role.FFN_DOWN, "q6_k", _outer_and_every_third),
        )),
        Recipe("q5_0", "q5_0", 8, "q6_k", is_chosen=False),
        Recipe("q4_k_m", "q4_k", 15, "q6_k", True, (
            Finer(Role.TOKEN_EMBEDDING, "q5_k"),
            Finer(Role.ATTN_QKV, "q5_k"),
            Finer(Role.FFN_DOWN, "q6_k", _outer_and_every_third),
        )),
        Recipe("q4_k_s", "q4_k", 14, "q6_k", False, (
            Finer(Role.TOKEN_EMBEDDING, "q5_k"),
            Finer(Role.FFN_DOWN, "q5_k", _first_eighth),
        )),
        Recipe("q4_0", "q4_0", 2, "q6_k", is_chosen=True),
        Recipe("q3_k_m", "q3_k", 12, "q6_k", True, (
            Finer(Role.TOKEN_EMBEDDING, "q4_k"),
            Finer(Role.ATTN_QKV, "q4_k"),
            Finer(Role.ATTN_OUTPUT, "q4_k"),
            Finer(Role.FFN_DOWN, "q5_k", _first_sixteenth),
            Finer(Role.FFN_DOWN, "q4_k"),
        )),
        Recipe("iq4_nl", "iq4_nl", 25, "q6_k", False, (
            Finer(Role.FFN_DOWN, "q5_k", _first_eighth),
        )),
        Recipe("iq3_s", "iq3_s", 26, "q6_k", False, (
            Finer(Role.TOKEN_EMBEDDING, "q4_k"),
        )),
    )
}  # fmt: skip
