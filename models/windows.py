"""Layers that see only a window of the past, as GPT-Neo's local layers do.

llama.cpp's ``mpt`` graph has none. A file says which layers have one and how long it is, and our
kernels hide what lies before it; llama.cpp's own compute such a file as far as the window reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The graph whose mask can hold distances (by ALiBi, which is then not applied).
WINDOW_GRAPH = "mpt"
#: Metadata keys: tokens that a layer sees with the query's own, and the layers, as in "1,3,5".
WINDOW_KEY, LAYERS_KEY = "inferos.attention.window", "inferos.attention.window_layers"
#: The longest: float16 holds the distances up to it exactly.
LONGEST_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class Windows:
    """``layers`` (from 0) see ``size`` tokens, the query's own among them; others see all."""

    size: int
    layers: tuple[int, ...]

    @property
    def metadata(self) -> dict[str, int | str]:
        """As a file says it."""
        return {WINDOW_KEY: self.size, LAYERS_KEY: ",".join(map(str, self.layers))}

    def by_layer(self, n_layer: int) -> list[int]:
        """The window of every layer; 0 where it sees everything."""
        return [self.size if layer in self.layers else 0 for layer in range(n_layer)]


def windows_in(metadata: Mapping[str, Any], n_layer: int) -> Windows | None:
    """The windows that a file of ``n_layer`` layers says it has; None: it has none.

    Raises:
        ValueError: what it says cannot be; the text says why.
    """
    size, layers = metadata.get(WINDOW_KEY), metadata.get(LAYERS_KEY)
    if size is None and layers is None:
        return None
    if type(size) is not int or not 1 <= size <= LONGEST_WINDOW:
        raise ValueError(
            f"{WINDOW_KEY!r} is {size!r}; expected a whole number from 1 to {LONGEST_WINDOW}"
        )
    numbers = layers.split(",") if isinstance(layers, str) else []
    known = {str(layer): layer for layer in range(n_layer)}
    if not numbers or len(set(numbers)) != len(numbers) or not known.keys() >= set(numbers):
        raise ValueError(f"{LAYERS_KEY!r} is {layers!r}; expected numbers of layers, as in 1,3,5")
    return Windows(size, tuple(known[number] for number in numbers))
