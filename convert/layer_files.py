"""The files in which GPT-NeoX's own training code keeps a model: one per layer.

``layer_00-model_00-model_states.pt`` is the embedding, 02 and on are the layers, then come the last
norm and the head (DeepSpeed's pipeline numbers the modules, and some of them hold no weights). A
model that was trained on several GPUs at once has ``model_01`` and on as well: every layer is cut.
In: such files. Out: their tensors, joined, under the names of Hugging Face's
``GPTNeoXForCausalLM``, as tools/ckpts/convert_neox_to_hf.py of
https://github.com/EleutherAI/gpt-neox gives them. :mod:`.layer_parts` joins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .decoded import DecodedMatrix
from .errors import FileFormatError, SourceError
from .layer_parts import Joint, join_parts, joint_of, values_of
from .tensors import StoredTensor
from .torch_file import TorchFile

_NAME = re.compile(r"layer_(\d{2,4})-model_(\d{2,4})-model_states\.pt")
#: The modules before the first layer: the embedding, and one that changes the order of dimensions.
_BEFORE_LAYERS = 2
_OUTER = {
    "word_embeddings.weight": "gpt_neox.embed_in.weight",
    "norm.weight": "gpt_neox.final_layer_norm.weight",
    "norm.bias": "gpt_neox.final_layer_norm.bias",
    "final_linear.weight": "embed_out.weight",
}
#: More GPUs than a layer was ever cut for.
_MOST_PARTS = 256


class LayerFile(TorchFile):
    """A mapped layer file; its tensors have Hugging Face's names."""

    def __init__(self, path: Path) -> None:
        """Map the file, as a torch file.

        Raises:
            FileFormatError: as for a torch file, or a name that is not a layer's.
        """
        super().__init__(path)
        try:
            found = _NAME.fullmatch(path.name)
            if found is None:
                raise FileFormatError(f"{path}: not the name of a layer's file")
            number = int(found[1]) - _BEFORE_LAYERS
            names = {name: _name(name, number) for name in self.tensors}
            self.tensors = {new: replace(self.tensors[old], name=new) for old, new in names.items()}
            self._places = {new: self._places[old] for old, new in names.items()}
        except BaseException:
            self.close()
            raise


class LayerParts:
    """The files of a layer that was cut for several GPUs, as one file with its whole tensors."""

    def __init__(self, path: Path, joint: Joint) -> None:
        """Map the files, of which ``path`` is the first.

        Raises:
            FileFormatError: as for a torch file, or parts that do not fit each other.
        """
        self.path = path
        with ExitStack() as stack:
            names = [path.name.replace("model_00-", f"model_{part:02}-") for part in range(joint.n)]
            self._parts = [stack.enter_context(LayerFile(path.with_name(name))) for name in names]
            for part in self._parts[1:]:
                if part.tensors.keys() != self._parts[0].tensors.keys():
                    raise FileFormatError(f"{part.path}: has other tensors than {path.name}")
            self._joint = joint
            self.tensors: Mapping[str, StoredTensor] = {
                name: join_parts([part.tensors[name] for part in self._parts], joint)
                for name in self._parts[0].tensors
            }
            self._owned = stack.pop_all()

    def array(self, name: str) -> NDArray[Any] | DecodedMatrix:
        """See :meth:`TensorFile.array`; a large tensor is joined as its rows are taken."""
        return values_of(name, [part.array(name) for part in self._parts], self._joint)

    def check(self) -> None:
        """See :meth:`TensorFile.check`."""
        for part in self._parts:
            part.check()

    def forget(self) -> None:
        """See :meth:`TensorFile.forget`."""
        for part in self._parts:
            part.forget()

    def close(self) -> None:
        """Close all files."""
        self._owned.close()


def find_layer_files(folder: Path, config: Mapping[str, Any]) -> tuple[list[Path], Joint]:
    """The layer files of a folder, in order, the first part of each layer; and how to join parts.

    Nothing if it holds no such checkpoint.

    Raises:
        SourceError: a part of a layer is missing.
    """
    found = {path: _NAME.fullmatch(path.name) for path in folder.iterdir()}
    numbers = {path: (int(m[1]), int(m[2])) for path, m in found.items() if m and path.is_file()}
    n_parts = 1 + max((part for _, part in numbers.values()), default=0)
    if n_parts > _MOST_PARTS:
        raise SourceError(f"{folder}: layers of {n_parts} parts; at most {_MOST_PARTS} are joined")
    there = set(numbers.values())
    layers = {layer for layer, _ in there}
    missing = sorted({(layer, part) for layer in layers for part in range(n_parts)} - there)
    if missing:
        layer, part = missing[0]
        raise SourceError(
            f"{folder}: layer_{layer:02}-model_{part:02}-model_states.pt is missing: every layer "
            f"is cut into {n_parts} parts, one for each GPU"
        )
    firsts = [path for path in numbers if numbers[path][1] == 0]
    return sorted(firsts, key=lambda path: numbers[path]), joint_of(n_parts, config)


def open_layer(path: Path, joint: Joint) -> LayerFile | LayerParts:
    """Open a layer, whole or in parts.

    Raises:
        FileFormatError: a file that is malformed, or parts that do not fit each other.
    """
    return LayerFile(path) if joint.n == 1 else LayerParts(path, joint)


def _name(name: str, layer: int) -> str:
    return _OUTER.get(name) or f"gpt_neox.layers.{layer}.{name}"
