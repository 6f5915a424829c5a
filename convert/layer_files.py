"""The files in which GPT-NeoX's own training code keeps a model: one per layer.

``layer_00-model_00-model_states.pt`` is the embedding, 02 and on are the layers, then come the last
norm and the head (DeepSpeed's pipeline numbers the modules, and some of them hold no weights). In:
such a file. Out: its tensors under the names of Hugging Face's ``GPTNeoXForCausalLM``, as
tools/ckpts/convert_neox_to_hf.py of https://github.com/EleutherAI/gpt-neox gives them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from .errors import FileFormatError, UnsupportedError
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


def find_layer_files(folder: Path) -> list[Path]:
    """The layer files of a folder, in order; none if it holds no such checkpoint.

    Raises:
        UnsupportedError: every layer is cut into parts for several GPUs.
    """
    found = {path: _NAME.fullmatch(path.name) for path in folder.iterdir()}
    numbers = {path: (int(m[1]), int(m[2])) for path, m in found.items() if m and path.is_file()}
    n_parts = 1 + max((part for _, part in numbers.values()), default=0)
    if n_parts > 1:
        raise UnsupportedError(
            f"{folder}: every layer is cut into {n_parts} parts (model_00 and on); join them with "
            "the tools of GPT-NeoX (tools/ckpts), or name the model's repository on the hub"
        )
    return sorted(numbers, key=lambda path: numbers[path])


def _name(name: str, layer: int) -> str:
    return _OUTER.get(name) or f"gpt_neox.layers.{layer}.{name}"
