"""Plan a conversion: which stored tensor becomes which tensor of the file, in which type.

Goes in: a network's rules and a checkpoint's headers. Comes out: a :class:`ConversionPlan`; every
gap between the two is reported in one error, before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infer_os.models.network import Network, Part, Role, TensorRule
from infer_os.models.weight_types import Recipe
from infer_os.native.ggml_types import GgmlType, ggml_type_named
from infer_os.native.gguf_file import padded

from .errors import PlanError
from .ggml_blocks import OLD_TYPES
from .layer_parts import JOINED
from .tensors import BLOCKS8, ROWS8, WEIGHT_DTYPES, StoredTensor, dtype_named
from .types import fitting_type, wanted_type

_MOST_GAPS_SHOWN = 8


#: Types of matrices whose rows are decoded one by one; their bytes are counted as one a value.
_DECODED = frozenset((ROWS8, BLOCKS8, JOINED, *(old.name for old in OLD_TYPES.values())))


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A stored tensor and how its rows go into the file."""

    part: Part
    stored: StoredTensor

    @property
    def n_bytes(self) -> int:
        """Bytes in the checkpoint."""
        if self.stored.dtype in _DECODED:
            return math.prod(self.stored.shape)
        return math.prod(self.stored.shape) * dtype_named(self.stored.dtype).size

    @property
    def is_eight_bit(self) -> bool:
        """Whether it is to be decoded from 8 bits first."""
        return self.stored.dtype in (ROWS8, BLOCKS8)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor to write; without parts it is made, or zeros.

    ``wanted`` is the recipe's type; ``type`` differs if the rows do not divide into its blocks.
    """

    rule: TensorRule
    parts: tuple[PlannedPart, ...]
    type: GgmlType
    wanted: str

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return self.type.row_bytes(math.prod(self.rule.shape))


@dataclass(frozen=True, slots=True)
class Job:
    """A part to quantize and write ``at`` bytes from its tensor's start."""

    tensor: PlannedTensor
    part: PlannedPart
    at: int


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """Every tensor of the file, in the order of its data."""

    tensors: tuple[PlannedTensor, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def padded_bytes(self, but: Container[str] = ()) -> int:
        """Bytes that the tensors take in the file, ``but`` for those of these names."""
        return sum(padded(t.n_bytes) for t in self.tensors if t.rule.target not in but)

    def by_shard(self) -> Iterator[tuple[Path, list[Job]]]:
        """The parts to write, file by file, so that only one shard at a time is needed."""
        shards: dict[Path, list[Job]] = {}
        for tensor in self.tensors:
            at = 0
            for part in tensor.parts:
                shards.setdefault(part.stored.path, []).append(Job(tensor, part, at))
                at += tensor.type.row_bytes(math.prod(part.part.target_shape))
        yield from sorted(shards.items())

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from what was asked for."""
        counts: dict[tuple[str, str], int] = {}
        for tensor in self.tensors:
            if tensor.type.name != tensor.wanted:
                key = (tensor.wanted, tensor.type.name)
                counts[key] = counts.get(key, 0) + 1
        return tuple(
            f"type: {'1 tensor is' if n == 1 else f'{n} tensors are'} {fitted}, since rows of "
            f"{'its' if n == 1 else 'their'} length do not divide into {wanted} blocks"
            for (wanted, fitted), n in counts.items()
        )


def make_plan(
    network: Network, stored: Mapping[str, StoredTensor], recipe: Recipe
) -> ConversionPlan:
    """Match the rules against the stored tensors.

    Raises:
        PlanError: tensors that are missing, unknown, or of the wrong shape or type; lists all.
    """
    prefix = _common_prefix(network, stored)
    gaps: dict[str, None] = {}
    planned: list[PlannedTensor] = []
    used: set[str] = set()
    tied = all(rule.role is not Role.HEAD for rule in network.rules)
    for rule in network.rules:
        parts: list[PlannedPart] = []
        for part in rule.parts:
            name = _stored_name(part, prefix, stored)
            used.add(name)
            gap = _gap(part, name, stored.get(name))
            if gap:
                gaps[gap] = None
            else:
                parts.append(PlannedPart(part, stored[name]))
        wanted = wanted_type(recipe, rule, network.n_layer, tied_head=tied)
        fitted = fitting_type(wanted, rule.shape[-1])
        planned.append(PlannedTensor(rule, tuple(parts), ggml_type_named(fitted), wanted))
    unused = [name for name in stored if name not in used]
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in network.ignored) or r"(?!)")
    strangers = [
        name for name in unused if not ignored.fullmatch(bare_name(name, network.prefixes))
    ]
    gaps.update({f"{name}: not known to {network.architecture}": None for name in strangers})
    if headless := _missing_head(network, stored):
        raise PlanError(
            f"{headless}: missing: this is a bare model without its head, which computes no text; "
            f"convert the checkpoint of a {network.architecture}"
        )
    if gaps:
        shown = "; ".join(list(gaps)[:_MOST_GAPS_SHOWN])
        more = f"; and {len(gaps) - _MOST_GAPS_SHOWN} more" if len(gaps) > _MOST_GAPS_SHOWN else ""
        raise PlanError(
            f"the checkpoint does not fit its config.json ({network.architecture}): {shown}{more}"
        )
    return ConversionPlan(tuple(planned))


def _stored_name(part: Part, prefix: str, stored: Iterable[str]) -> str:
    """The checkpoint's name of a part: with the prefix, without it, or an alternative name."""
    spellings = (prefix + part.source, part.source, *part.also)
    return next((name for name in spellings if name in stored), part.source)


def _common_prefix(network: Network, stored: Iterable[str]) -> str:
    """This checkpoint's spelling of the prefix."""
    names = set(stored)
    sources = [part.source for rule in network.rules for part in rule.parts]
    return max(network.prefixes, key=lambda prefix: sum(prefix + s in names for s in sources))


def _missing_head(network: Network, stored: Mapping[str, StoredTensor]) -> str:
    """The head's name, if the checkpoint has the embedding but no part of the head."""
    parts = {
        role: [p for rule in network.rules if rule.role is role for p in rule.parts]
        for role in (Role.TOKEN_EMBEDDING, Role.HEAD)
    }
    shared = {part.source for part in parts[Role.TOKEN_EMBEDDING]}
    own = [part for part in parts[Role.HEAD] if part.source not in shared]
    heads = [name for part in own for name in (part.source, *part.also)]
    # only GPT-NeoX, saved without its head, drops the first word of the names
    spellings = [p.source.removeprefix("gpt_neox.") for p in parts[Role.TOKEN_EMBEDDING]]
    has_embedding = any(name.endswith(tuple(spellings)) for name in stored)
    return heads[0] if heads and has_embedding and not set(heads) & set(stored) else ""


def bare_name(name: str, prefixes: tuple[str, ...]) -> str:
    """A stored tensor's name without the prefix that some files have."""
    for prefix in sorted(prefixes, key=len, reverse=True):
        if prefix and name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _gap(part: Part, name: str, source: StoredTensor | None) -> str | None:
    if source is None:
        return f"{name}: missing"
    if source.shape != part.shape:
        return f"{name} ({source.path.name}): has shape {source.shape}, expected {part.shape}"
    if source.dtype in _DECODED and not part.transform.transposes:
        return None
    if source.dtype not in WEIGHT_DTYPES:
        return f"{name}: has type {source.dtype}, expected {', '.join(WEIGHT_DTYPES)}"
    return None
