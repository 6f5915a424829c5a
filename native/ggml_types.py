"""ggml's tensor types, as the loaded library knows them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .library import load_library


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A tensor type: ``block`` values take ``bytes`` bytes."""

    id: int
    name: str
    block: int
    bytes: int
    quantized: bool

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of ``n`` values; ``n`` must be a multiple of the block."""
        return n // self.block * self.bytes


# GGML_TYPE_COUNT of the pinned version; ggml keeps removed types as empty entries
_TYPE_COUNT = 43


@functools.cache
def ggml_types() -> dict[int, GgmlType]:
    """Every type of the loaded ggml by number; removed ones (a block of 0) are left out."""
    library = load_library()
    types: dict[int, GgmlType] = {}
    for number in range(_TYPE_COUNT):
        name = library.ggml_type_name(number)
        block = library.ggml_blck_size(number)
        if name is None or block <= 0:
            continue
        types[number] = GgmlType(
            number,
            name.decode().lower(),
            block,
            library.ggml_type_size(number),
            library.ggml_is_quantized(number),
        )
    return types


@functools.cache
def ggml_type_named(name: str) -> GgmlType:
    """The type of that (lower-case) name.

    Raises:
        KeyError: ggml has no such type.
    """
    for known in ggml_types().values():
        if known.name == name:
            return known
    raise KeyError(name)
