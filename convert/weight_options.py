"""How large a network's weights are in every type, without having them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from infer_os.models.network import Network, Role
from infer_os.models.shape import SizedTensor, WeightOption, weight_option
from infer_os.models.weight_types import RECIPES, Recipe
from infer_os.native.ggml_types import ggml_type_named

from .types import fitting_type, wanted_type

# rows that are looked up, one per token
_LOOKED_UP = (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)


def weight_options(network: Network) -> tuple[WeightOption, ...]:
    """The weights in every type that ``convert --type`` knows, the largest first."""
    options = (_weight_option(network, name, recipe) for name, recipe in RECIPES.items())
    return tuple(sorted(options, key=lambda option: -option.n_bytes))


def _weight_option(network: Network, name: str, recipe: Recipe) -> WeightOption:
    return weight_option(name, _sized_tensors(network, recipe))


def _sized_tensors(network: Network, recipe: Recipe) -> Iterator[SizedTensor]:
    tied = all(rule.role is not Role.HEAD for rule in network.rules)
    for rule in network.rules:
        wanted = wanted_type(recipe, rule, network.n_layer, tied_head=tied)
        fitted = ggml_type_named(fitting_type(wanted, rule.shape[-1]))
        is_head = tied and rule.role is Role.TOKEN_EMBEDDING
        yield SizedTensor(
            fitted.name,
            fitted.row_bytes(math.prod(rule.shape)),
            is_lookup=rule.role in _LOOKED_UP and not is_head,
            is_matrix=len(rule.shape) > 1,
        )
