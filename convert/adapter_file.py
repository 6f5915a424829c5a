"""Write a LoRA adapter as the GGUF file that llama.cpp adds to a loaded model.

Goes in: an adapter in PEFT's format, or a GGUF file of llama.cpp's own format, and the header of
the model's file. Comes out: a GGUF file with a pair of float32 matrices for each tensor of the
model, ``NAME.lora_a`` and ``NAME.lora_b``, whose rows are in the order of the model's file.

llama.cpp adds ``scale * B A x`` (``build_lora_mm`` of src/llama-graph.cpp). The factors of the
adapter are in B already. Ranks are padded with zeros to what our kernels take. A tensor that is
stacked from several has a pair with their matrices side by side, each with zeros outside its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from infer_os.files import new_file
from infer_os.models.architectures import describe
from infer_os.models.network import Network, Part, Role, TensorRule
from infer_os.models.rotation import ROTATION_KEY, fold_rotation
from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import GgufHeader, GgufTensor, padded, read_gguf_header
from infer_os.native.lora_adapter import DIGEST_KEY, EMBEDDING, PADDED_RANK, check_adapter
from infer_os.native.quantize import LowRank
from infer_os.native.watched_file import WatchedFile

from .adapters import OpenAdapter, Pair, adapters_digest, add_file, checked, open_adapter, parts_of
from .blocks import added_to_target, widened
from .errors import FileFormatError, OutputError, SourceChanged, SourceError, UnsupportedError
from .gguf_writer import header_bytes
from .origins import CONFIG_KEY
from .source import AdapterSource

#: Raised with the layout of the files, which then get other names.
_VERSION = 2
_HASHED = 16  # hexadecimal digits
_CHUNK = 1 << 20
#: Metadata key of a hash of the file, for which the hash itself is zeros.
_CHECK_KEY = "inferos.adapter.check"
_NO_CHECK = "0" * 64
#: What llama.cpp adds an adapter's products to.
_MULTIPLIED = (Role.ATTN_QKV, Role.ATTN_OUTPUT, Role.FFN_UP, Role.FFN_DOWN, Role.HEAD)
_DTYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor of the model and the rank of what is added to it, which ``load`` computes."""

    name: str
    shape: tuple[int, int]
    rank: int
    load: Callable[[], LowRank]

    @property
    def padded_rank(self) -> int:
        return -(-self.rank // PADDED_RANK) * PADDED_RANK

    def shapes(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """Names and shapes of its two matrices, rows first."""
        (rows, columns), rank = self.shape, self.padded_rank
        # llama.cpp looks rows of the embedding's A up
        a, b = (
            ((rows, rank), (columns, rank)) if self.looked_up else ((rank, columns), (rows, rank))
        )
        return (f"{self.name}.lora_a", a), (f"{self.name}.lora_b", b)

    @property
    def looked_up(self) -> bool:
        return self.name == EMBEDDING

    def matrices(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both, padded. ``path`` is where they are from.

        Raises:
            FileFormatError: values that cannot be.
        """
        added = checked(path, self.name, self.load)
        left = np.pad(added.left, ((0, 0), (0, self.padded_rank - self.rank)))
        right = np.pad(added.right, ((0, self.padded_rank - self.rank), (0, 0)))
        return (left, np.ascontiguousarray(right.T)) if self.looked_up else (right, left)


def adapter_digest(source: AdapterSource, model: GgufHeader) -> str:
    """A hash of all that decides the bytes of an adapter's file, but for the scale.

    Raises:
        SourceError: no adapter.
        GgufError: a GGUF file that is no adapter of this model.
    """
    if source.folder.is_dir():
        content = adapters_digest([AdapterSource(source.folder, 1.0, "", source.option)])
    else:
        # a look at its header, before all of what may be no adapter is read
        check_adapter(read_gguf_header(source.folder), model)
        content = _file_digest(source)
    layout = (_VERSION, model.architecture, model.metadata.get(CONFIG_KEY),
              model.metadata.get(ROTATION_KEY), content)  # fmt: skip
    return hashlib.sha256(repr(layout).encode()).hexdigest()[:_HASHED]


def write_adapter(source: AdapterSource, model: GgufHeader, target: Path) -> None:
    """Write the file of an adapter, without its scale; it appears when it is complete.

    Args:
        source: PEFT's folder, or a GGUF file.
        model: the header of the model's file.
        target: the file.

    Raises:
        SourceError: no adapter, or one of another model.
        FileFormatError: a file that is malformed.
        UnsupportedError: an adapter that does more than LoRA, or one that can only be merged.
        GgufError: a GGUF file that is no adapter of this model.
        SourceChanged: it was written to meanwhile.
        OutputError: the file cannot be written.
    """
    if not source.folder.is_dir():
        with _watched(source) as check:
            targets = _targets_of_file(source, model)
            _write(source, model, targets, target, check)
        return
    network = _network(source, model)
    parts = parts_of(network)
    unscaled = replace(source, scale=1.0)
    with open_adapter(unscaled, parts, network.prefixes) as adapter:
        for copy in adapter.copies:
            raise UnsupportedError(
                f"{source.title}: it comes with a {copy} of its own, which cannot be compared with "
                f"the weights of {model.path.name}; {_merged(source)}"
            )
        targets = list(_targets(source, network, adapter))
        _write(source, model, targets, target, adapter.file.check)


def is_sound(path: Path) -> bool:
    """Whether there is such a file, and :func:`write_adapter` wrote all of it."""
    try:
        header = read_gguf_header(path)
        check = header.metadata.get(_CHECK_KEY)
        if header.metadata.get(DIGEST_KEY) != path.stem or not isinstance(check, str):
            return False
        with path.open("rb") as file:
            head = file.read(header.data_offset).replace(check.encode(), _NO_CHECK.encode())
            digest = hashlib.sha256(head)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except (GgufError, OSError):
        return False
    return digest.hexdigest() == check


def _network(source: AdapterSource, model: GgufHeader) -> Network:
    """The network of the checkpoint that a file was converted from."""
    text = model.metadata.get(CONFIG_KEY)
    if not isinstance(text, str):
        raise UnsupportedError(
            f"{source.title}: {model.path.name} does not say which layout its checkpoint had; "
            "convert it again with this infer-os, or give the adapter as a GGUF file"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise FileFormatError(f"{model.path}: bad GGUF header: {CONFIG_KEY!r} is not a JSON object")
    network = describe(config)
    return fold_rotation(network) if ROTATION_KEY in model.metadata else network


def _targets(source: AdapterSource, network: Network, adapter: OpenAdapter) -> Iterator[_Target]:
    """What is added to each of the model's tensors.

    Raises:
        UnsupportedError: a tensor that llama.cpp adds nothing to.
    """
    tied = all(rule.role is not Role.HEAD for rule in network.rules)
    for rule in network.rules:
        found = [part for part in rule.parts if _pair_of(part, adapter)]
        if not found:
            continue
        is_embedding = rule.role is Role.TOKEN_EMBEDDING
        if rule.role not in _MULTIPLIED and not (is_embedding and not tied):
            why = " where the head is the embedding" if is_embedding else ""
            raise UnsupportedError(
                f"{source.title}: it changes {found[0].source}, to which llama.cpp adds no adapter "
                f"while it runs{why}; {_merged(source)}"
            )
        yield _target(rule, adapter)


def _pair_of(part: Part, adapter: OpenAdapter) -> Pair | None:
    names = (part.source, *part.also)
    return next((adapter.pairs[name] for name in names if name in adapter.pairs), None)


def _target(rule: TensorRule, adapter: OpenAdapter) -> _Target:
    """The pair of a tensor: those of its parts, each in the rows of its own."""
    rows, columns = rule.shape
    pairs = [(part, _pair_of(part, adapter)) for part in rule.parts]
    rank = sum(pair.rank for _, pair in pairs if pair is not None)

    def load() -> LowRank:
        left, right = np.zeros((rows, rank), np.float32), np.zeros((rank, columns), np.float32)
        row = at = 0
        for part, pair in pairs:
            n_rows = part.target_shape[0]
            if pair is not None:
                added = added_to_target(pair.load(), part)
                left[row : row + n_rows, at : at + pair.rank] = added.left
                right[at : at + pair.rank] = added.right
                at += pair.rank
            row += n_rows
        return LowRank(left, right)

    return _Target(rule.target, (rows, columns), rank, load)


def _merged(source: AdapterSource) -> str:
    return f"add it while the model is converted: --lora {source.folder}"


# ---- files of llama.cpp's format


def _targets_of_file(source: AdapterSource, model: GgufHeader) -> list[_Target]:
    """The pairs of a GGUF file, checked, with its factors in them."""
    header = read_gguf_header(source.folder)
    check_adapter(header, model)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    alpha = float(header.metadata.get("adapter.lora.alpha", 0.0))
    found = []
    for name in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        shape = next(tensor.shape for tensor in model.tensors if tensor.name == name)
        rank = b.shape[0]
        load = _loader(header, (a, b), alpha / rank if alpha else 1.0, looked_up=name == EMBEDDING)
        found.append(_Target(name, (shape[1], shape[0]), rank, load))
    return found


def _loader(
    header: GgufHeader, pair: tuple[GgufTensor, GgufTensor], factor: float, *, looked_up: bool
) -> Callable[[], LowRank]:
    def read(tensor: GgufTensor) -> NDArray[np.float32]:
        try:
            values = np.memmap(
                header.path, _DTYPES[tensor.type.name], "r", header.data_offset + tensor.offset,
                tensor.shape[::-1],
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise SourceChanged(f"{header.path}: has changed while it was read: {error}") from error
        return widened(values)

    def load() -> LowRank:
        a, b = map(read, pair)
        left, right = (a, b.T) if looked_up else (b, a)
        return LowRank(left * np.float32(factor), np.ascontiguousarray(right))

    return load


def _file_digest(source: AdapterSource) -> str:
    digest = hashlib.sha256()
    try:
        add_file(digest, source.folder)
    except OSError as error:
        raise SourceError(f"{source.title}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


@contextmanager
def _watched(source: AdapterSource) -> Iterator[Callable[[], None]]:
    """While inside, the file is watched; yields what raises SourceChanged if it has changed."""
    try:
        watch = WatchedFile(source.folder)
    except OSError as error:
        raise SourceError(f"{source.title}: cannot be read: {error.strerror}") from error

    def check() -> None:
        if complaint := watch.complaint():
            raise SourceChanged(complaint)

    with watch:
        yield check


# ---- writing


def _write(
    source: AdapterSource,
    model: GgufHeader,
    targets: Sequence[_Target],
    path: Path,
    check: Callable[[], None],
) -> None:
    """Write the file; ``check`` raises if what the targets read has changed meanwhile."""
    digest = adapter_digest(source, model)
    try:
        with new_file(path) as file:
            header = _header(model.architecture, digest, _NO_CHECK, targets)
            file.write(header)
            hashed = hashlib.sha256(header)
            for target in targets:
                for matrix in target.matrices(source.folder):
                    data = matrix.astype("<f4", copy=False).tobytes()
                    data += bytes(padded(len(data)) - len(data))
                    file.write(data)
                    hashed.update(data)
            check()
            file.seek(0)
            file.write(_header(model.architecture, digest, hashed.hexdigest(), targets))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _header(graph: str, digest: str, check: str, targets: Sequence[_Target]) -> bytes:
    writer: Any = gguf.GGUFWriter(None, graph)
    texts: Mapping[str, str] = {
        "general.type": "adapter", "adapter.type": "lora", DIGEST_KEY: digest, _CHECK_KEY: check,
    }  # fmt: skip
    for key, value in texts.items():
        writer.add_string(key, value)
    # B has the factor already: 0 stands for none
    writer.add_float32("adapter.lora.alpha", 0.0)
    for target in targets:
        for name, shape in target.shapes():
            writer.add_tensor_info(
                name, shape, np.dtype(np.float32), 4 * shape[0] * shape[1],
                raw_dtype=gguf.GGMLQuantizationType.F32,
            )  # fmt: skip
    return header_bytes(writer)
