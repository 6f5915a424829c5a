"""Plan a conversion: which stored tensor becomes which tensor of the file, in which type.

Goes in: a network's rules and a checkpoint's headers. Comes out: a :class:`Plan`; every gap between
the two is reported in one error, before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infer_os.models.network import Network, Role, TensorRule
from infer_os.native.ggml_types import GgmlType, ggml_type_named

from .errors import PlanError
from .tensors import WEIGHT_DTYPES, StoredTensor
from .types import Recipe, fitting_type, wanted_type

_MOST_GAPS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor to write. ``source`` is None for one filled with zeros.

    ``wanted`` is the type of the recipe; ``type`` differs where the rows do not divide.
    """

    rule: TensorRule
    source: StoredTensor | None
    shape: tuple[int, ...]
    type: GgmlType
    wanted: str

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return self.type.row_bytes(math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Plan:
    """Every tensor of the file, in the order of writing."""

    tensors: tuple[PlannedTensor, ...]
    unused: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from what was asked for."""
        counts: dict[tuple[str, str], int] = {}
        for tensor in self.tensors:
            if tensor.type.name != tensor.wanted:
                key = (tensor.wanted, tensor.type.name)
                counts[key] = counts.get(key, 0) + 1
        return tuple(
            f"type: {n} tensors kept at {fitted}, since their rows do not divide into {wanted} "
            "blocks"
            for (wanted, fitted), n in counts.items()
        )


def make_plan(network: Network, stored: Mapping[str, StoredTensor], recipe: Recipe) -> Plan:
    """Match the rules against the stored tensors.

    Raises:
        PlanError: tensors that are missing, of another shape or type, or unknown; all of them.
    """
    prefix = _common_prefix(network, stored)
    gaps: list[str] = []
    planned: list[PlannedTensor] = []
    used: set[str] = set()
    tied = all(rule.role is not Role.HEAD for rule in network.rules)
    for rule in network.rules:
        source = None
        if rule.source is not None:
            name = prefix + rule.source if prefix + rule.source in stored else rule.source
            source = stored.get(name)
            used.add(name)
            gap = _gap(rule, name, source)
            if gap:
                gaps.append(gap)
                continue
        planned.append(_plan_tensor(rule, source, recipe, network.n_layer, tied))
    unused = [name for name in stored if name not in used]
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in network.ignored) or r"(?!)")
    strangers = [name for name in unused if not ignored.fullmatch(_strip(name, network.prefixes))]
    gaps += [f"{name}: not known to {network.architecture}" for name in strangers]
    if gaps:
        more = f"; and {len(gaps) - _MOST_GAPS_SHOWN} more" if len(gaps) > _MOST_GAPS_SHOWN else ""
        raise PlanError(
            f"the checkpoint does not fit its config.json ({network.architecture}): "
            f"{'; '.join(gaps[:_MOST_GAPS_SHOWN])}{more}"
        )
    return Plan(tuple(planned), tuple(unused))


def _common_prefix(network: Network, stored: Iterable[str]) -> str:
    """The spelling of the prefix that this checkpoint uses."""
    names = set(stored)
    sources = [rule.source for rule in network.rules if rule.source is not None]
    return max(network.prefixes, key=lambda prefix: sum(prefix + s in names for s in sources))


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in sorted(prefixes, key=len, reverse=True):
        if prefix and name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _gap(rule: TensorRule, name: str, source: StoredTensor | None) -> str | None:
    if source is None:
        return f"{name}: missing"
    if source.shape != rule.shape:
        return f"{name} ({source.path.name}): has shape {source.shape}, expected {rule.shape}"
    if source.dtype not in WEIGHT_DTYPES:
        return f"{name}: has type {source.dtype}, expected {', '.join(WEIGHT_DTYPES)}"
    return None


def _plan_tensor(
    rule: TensorRule, source: StoredTensor | None, recipe: Recipe, n_layer: int, tied: bool
) -> PlannedTensor:
    shape = rule.transform.target_shape(rule.shape)
    wanted = wanted_type(recipe, rule.role, rule.layer, n_layer, tied_head=tied)
    fitted = fitting_type(wanted, shape[-1])
    return PlannedTensor(rule, source, shape, ggml_type_named(fitted), wanted)
