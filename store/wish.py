"""What a user asks for: a model by its name, and the type of its weights.

Light to import: every command takes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelWish:
    """What the user calls a model. An empty ``type`` takes what is cached, else the default.

    ``loras`` are adapters that are added to its weights, as the user names them, ``adapters`` those
    that are loaded with it.

    Raises:
        UnsupportedError: no such type.
    """

    text: str
    type: str = ""
    loras: Sequence[str] = ()
    adapters: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, given in (("loras", self.loras), ("adapters", self.adapters)):
            if not isinstance(given, (list, tuple)) or not all(isinstance(t, str) for t in given):
                from ..convert.errors import UnsupportedError

                raise UnsupportedError(f"{name}: {given!r}: expected a list of texts")
        if self.type:
            from ..convert.types import recipe_named

            recipe_named(self.type)

    def refuse_loras(self, name: str) -> None:
        """See that no adapter is to be added to the weights of a ready file of that name.

        Raises:
            SettingsError: there is one.
        """
        if self.loras:
            from ..runtime.errors import SettingsError

            raise SettingsError(
                f"--lora {self.loras[0]}: {name} is a GGUF file, whose weights are already "
                "quantized; name the checkpoint instead, and the adapter is added while it is "
                "converted"
            )

    @property
    def name(self) -> str:
        """The last part: a file's name, or a repository without its owner."""
        return Path(self.text).name or Path(self.text).resolve().name
