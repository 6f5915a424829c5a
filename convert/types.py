"""Which type each tensor of a quantized file gets: llama.cpp's practice, stated in one table.

Source: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` in llama.cpp's
src/llama-quant.cpp. Embeddings, the head, value and down projections decide most about quality
and are few, so a mixture keeps them a step finer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from infer_os.models.network import Role

from .errors import UnsupportedError


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

    ``file_type`` is llama.cpp's LLAMA_FTYPE number. The first exception that fits counts.
    """

    base: str
    file_type: int
    head: str
    finer: tuple[Finer, ...] = field(default=())


#: Every ``--type``: names as llama.cpp spells them, lower case.
RECIPES: dict[str, Recipe] = {
    "f32": Recipe("f32", 0, "f32"),
    "f16": Recipe("f16", 1, "f16"),
    "bf16": Recipe("bf16", 32, "bf16"),
    "q8_0": Recipe("q8_0", 7, "q8_0"),
    "q6_k": Recipe("q6_k", 18, "q6_k"),
    "q5_k_m": Recipe("q5_k", 17, "q6_k", (
        Finer(Role.TOKEN_EMBEDDING, "q6_k"),
        Finer(Role.ATTN_QKV, "q6_k"),
        Finer(Role.FFN_DOWN, "q6_k", _outer_and_every_third),
    )),
    "q5_0": Recipe("q5_0", 8, "q6_k"),
    "q4_k_m": Recipe("q4_k", 15, "q6_k", (
        Finer(Role.TOKEN_EMBEDDING, "q5_k"),
        Finer(Role.ATTN_QKV, "q5_k"),
        Finer(Role.FFN_DOWN, "q6_k", _outer_and_every_third),
    )),
    "q4_k_s": Recipe("q4_k", 14, "q6_k", (
        Finer(Role.TOKEN_EMBEDDING, "q5_k"),
        Finer(Role.FFN_DOWN, "q5_k", _first_eighth),
    )),
    "q4_0": Recipe("q4_0", 2, "q6_k"),
    "q3_k_m": Recipe("q3_k", 12, "q6_k", (
        Finer(Role.TOKEN_EMBEDDING, "q4_k"),
        Finer(Role.ATTN_QKV, "q4_k"),
        Finer(Role.ATTN_OUTPUT, "q4_k"),
        Finer(Role.FFN_DOWN, "q5_k", _first_sixteenth),
        Finer(Role.FFN_DOWN, "q4_k"),
    )),
    "iq4_nl": Recipe("iq4_nl", 25, "q6_k", (
        Finer(Role.FFN_DOWN, "q5_k", _first_eighth),
    )),
    "iq3_s": Recipe("iq3_s", 26, "q6_k", (
        Finer(Role.TOKEN_EMBEDDING, "q4_k"),
    )),
}  # fmt: skip

#: Where rows do not divide into a type's blocks: the next type of smaller blocks.
FALLBACKS: dict[str, str] = {
    "iq3_s": "iq4_nl", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
    "iq4_nl": "f16", "q4_0": "f16", "q5_0": "f16", "q5_1": "f16", "q8_0": "f16",
}  # fmt: skip

#: Values per block.
BLOCK_SIZES: dict[str, int] = {
    "f32": 1, "f16": 1, "bf16": 1, "q8_0": 32, "q5_1": 32, "q5_0": 32, "q4_0": 32, "iq4_nl": 32,
    "q6_k": 256, "q5_k": 256, "q4_k": 256, "q3_k": 256, "iq3_s": 256,
}  # fmt: skip

_ALWAYS_F32 = (Role.NORM, Role.BIAS, Role.POSITION_EMBEDDING)


def recipe_named(name: str) -> Recipe:
    """The recipe of a ``--type``.

    Raises:
        UnsupportedError: no such type; lists them.
    """
    try:
        return RECIPES[name.lower()]
    except KeyError:
        raise UnsupportedError(
            f"unknown type {name!r}; supported are {', '.join(RECIPES)}"
        ) from None


def wanted_type(
    recipe: Recipe, role: Role, layer: int | None, n_layer: int, *, tied_head: bool
) -> str:
    """The type that the recipe wants for a tensor, whatever its row length."""
    if role in _ALWAYS_F32:
        return "f32"
    if role is Role.HEAD or (role is Role.TOKEN_EMBEDDING and tied_head):
        return recipe.head
    for finer in recipe.finer:
        if finer.role is role and (layer is None or finer.where(layer, n_layer)):
            return finer.type
    return recipe.base


def fitting_type(wanted: str, row_length: int) -> str:
    """The wanted type, or the first fallback whose blocks divide the rows."""
    while row_length % BLOCK_SIZES[wanted]:
        wanted = FALLBACKS[wanted]
    return wanted
