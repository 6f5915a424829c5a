"""Which type each tensor of a quantized file gets, by the rows of :mod:`infer_os.models`.

In: a recipe, and a tensor's role, layer and row length. Out: the name of its type.
"""

from __future__ import annotations

from infer_os.models.network import Role, TensorRule
from infer_os.models.weight_types import RECIPES, TENSOR_TYPES, Recipe

from .errors import UnsupportedError

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


def wanted_type(recipe: Recipe, rule: TensorRule, n_layer: int, *, tied_head: bool) -> str:
    """The type that the recipe wants for a tensor of any row length."""
    role, layer = rule.role, rule.layer
    if rule.target in recipe.types:
        return recipe.types[rule.target]
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
    while row_length % TENSOR_TYPES[wanted].block:
        wanted = TENSOR_TYPES[wanted].fallback
    return wanted
