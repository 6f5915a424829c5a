"""Open a checkpoint folder: its config and its tensors, whichever files hold them.

Goes in: a folder in Hugging Face's layout. Comes out: a :class:`Checkpoint`, which knows every
tensor from the headers and opens a shard only while its tensors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .eight_bit import join_eight_bit
from .errors import FileFormatError, SourceError, UnsupportedError
from .layer_files import find_layer_files, open_layer
from .plain_file import read_json
from .safetensors_file import SafetensorsFile
from .tensors import StoredTensor, TensorFile
from .torch_file import TorchFile

_LONGEST_NAME = 255
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes"}

#: File name of a whole checkpoint, of its shards' index, and what opens such a file; the first that
#: exists counts.
CONTAINERS: tuple[tuple[str, str, Callable[[Path], TensorFile]], ...] = (
    ("model.safetensors", "model.safetensors.index.json", SafetensorsFile),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", TorchFile),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose headers have been read."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    opener: Callable[[Path], TensorFile]
    notes: tuple[str, ...] = ()

    @contextmanager
    def open(self, path: Path) -> Iterator[TensorFile]:
        """Open one of its shards."""
        file = self.opener(path)
        try:
            yield file
        finally:
            file.close()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and every header of a checkpoint folder.

    Raises:
        SourceError: no such folder, no config, no weights, or a shard that is missing.
        FileFormatError: a file that is malformed or truncated.
    """
    config = read_config(folder)
    for whole, index, opener in CONTAINERS:
        notes: tuple[str, ...] = ()
        # as transformers does: an index next to a whole file is left from an earlier save
        if (folder / whole).exists():
            paths = [folder / whole]
            notes = index_note(whole, index) if (folder / index).exists() else ()
        elif (folder / index).exists():
            paths = _present_shards(folder / index)
        else:
            continue
        tensors = join_eight_bit(_read_headers(paths, opener))
        return Checkpoint(folder, config, tensors, opener, notes)
    layers, joint = find_layer_files(folder, config)
    if layers:
        open_one = partial(open_layer, joint=joint)
        notes = ()
        if joint.n > 1:
            notes = (f"weights: joined from the parts of {joint.n} GPUs",)
        return Checkpoint(folder, config, _read_headers(layers, open_one), open_one, notes)
    wanted = ", ".join(name for whole, index, _ in CONTAINERS for name in (whole, index))
    raise SourceError(f"{folder}: no weights in this folder; looked for {wanted}")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        SourceError: no such folder, or not a checkpoint.
        FileFormatError: the file is not a JSON object.
    """
    try:
        folder.stat()
    except FileNotFoundError:
        raise SourceError(f"{folder}: no such folder") from None
    except OSError as error:
        raise SourceError(f"{folder}: cannot be opened: {error.strerror}") from error
    if not folder.is_dir():
        raise SourceError(f"{folder}: not a folder; expected one with config.json and weights")
    config = read_json(folder / "config.json")
    if config is None:
        raise SourceError(f"{folder}: not a checkpoint: it has no config.json")
    refuse_quantized(str(folder), config)
    return config


def refuse_quantized(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights another program has quantized, by what it says of that.

    Raises:
        UnsupportedError: GPTQ, AWQ or another form than bitsandbytes' 8 bits.
    """
    stated = config.get("quantization_config")
    if not isinstance(stated, dict):
        return
    method = str(stated.get("quant_method", "")) or "an unnamed method"
    if stated.get("load_in_8bit") is True:
        return
    bits = stated.get("bits") or (4 if stated.get("load_in_4bit") is True else "")
    shown = f"{_METHODS.get(method, method)[:40]}{f' with {bits} bits' if bits else ''}"
    raise UnsupportedError(
        f"{name}: its weights are quantized already, by {shown} (quantization_config in "
        "config.json), which is not read; name the original model, or a ready GGUF file of it"
    )


def read_index(index: Path) -> dict[str, str]:
    """The ``weight_map`` of a sharded checkpoint: file names by tensor name.

    Raises:
        FileFormatError: it has none, or names a file outside the folder.
    """
    weight_map = (read_json(index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(f"{index}: it has no weight_map")
    for name in weight_map.values():
        # a shard is a plain file next to the index: no path may lead elsewhere
        if (
            not isinstance(name, str)
            or name in ("", ".", "..")
            or Path(name).name != name
            or (len(name) > _LONGEST_NAME)
        ):
            raise FileFormatError(f"{index}: {name!r} is not the name of a file in this folder")
    return weight_map


def index_note(whole: str, index: str) -> tuple[str, ...]:
    """The note if a checkpoint has both."""
    return (f"weights: {whole} is read, as transformers does; {index} next to it is not",)


def _present_shards(index: Path) -> list[Path]:
    paths = [index.parent / name for name in dict.fromkeys(read_index(index).values())]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SourceError(
            f"{index.parent}: {len(missing)} of {len(paths)} shards are missing: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; download them again"
        )
    return paths


def _read_headers(
    paths: list[Path], opener: Callable[[Path], TensorFile]
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        file = opener(path)
        try:
            for name, tensor in file.tensors.items():
                if name in tensors:
                    raise FileFormatError(
                        f"{path}: tensor {name!r} is also in {tensors[name].path.name}"
                    )
                tensors[name] = tensor
        finally:
            file.close()
    return tensors
