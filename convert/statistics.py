"""Statistics of a model's activations: second moments of every matrix's inputs, in a folder.

In and out: a folder with a GGUF file per layer, named after it. The ``general.type`` of each is
``inferos.moments``; the tensor ``LEADER.K`` is diagonal block K of the inputs of the matrix LEADER,
``LEADER.sums`` the diagonal, which is all that is read until a matrix is quantized, and two arrays
of names say which matrices have whose inputs. Another file has the moments of the token embedding,
see :mod:`.embedding_reading`. What comes out of it is an importance matrix and,
per matrix, the feedback that a compensated quantization needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from infer_os.models.network import Role
from infer_os.models.rotation import ROTATION, ROTATION_KEY
from infer_os.native.compensation import DAMPING, Feedback, can_compensate, make_feedback
from infer_os.native.errors import GgufError
from infer_os.native.ggml_types import GgmlType, ggml_type_named
from infer_os.native.gguf_file import GgufArray, GgufHeader, read_gguf_header, tensor_array
from infer_os.native.moments import Moments, block_widths
from infer_os.native.watched_file import WatchedFile

from .conversion_plan import ConversionPlan, PlannedTensor
from .errors import FileFormatError, UnsupportedError
from .gguf_writer import complete_file, part_path
from .imatrix import ColumnSums, ImportanceMatrix
from .types import recipe_named

#: Tokens per column below which an importance matrix does as well: with 3 a real layer gained
#: nothing, with 13 a quarter of the loss.
FEWEST_TOKENS = 10

_KIND = "inferos.moments"
_FINGERPRINT, _MATRICES, _LEADERS = f"{_KIND}.fingerprint", f"{_KIND}.matrices", f"{_KIND}.leaders"
_ROWS, _CHUNKS, _CHUNK_SIZE = f"{_KIND}.rows", f"{_KIND}.chunk_count", f"{_KIND}.chunk_size"
_DATASET = f"{_KIND}.dataset"
#: In the name of the file that says what the first layer reads of the embedding.
READING = "embedding"
# the embedding has inputs where it is the head too
_LOOKED_UP = "token_embd.weight"
_SUFFIX, _SUMS = ".moments.gguf", ".sums"
# a folder of a few hundred layers; more is not one of ours
_MOST_FILES = 1 << 12
# of a layer: a handful
_MOST_MATRICES = 1 << 10


@dataclass(frozen=True, slots=True)
class Origin:
    """What statistics were collected from; the same for every file of a folder.

    ``fingerprint`` is a hash of the model that ran and of its tokens.
    """

    fingerprint: str
    dataset: str
    chunk_count: int
    chunk_size: int
    rotation: str = ""


def layer_path(folder: Path, layer: str) -> Path:
    """The file of a layer (``blk.0``, or ``output`` for the head)."""
    return folder / f"{layer}{_SUFFIX}"


def statistics_files(folder: Path) -> list[Path]:
    """All that there are, by name."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def write_layer(
    path: Path, origin: Origin, leaders: Mapping[str, str], moments: Mapping[str, Moments]
) -> None:
    """Write the statistics of one layer; the file appears when it is complete.

    Args:
        path: the file; an existing one is replaced.
        origin: what they are of.
        leaders: of every matrix of the layer, whose inputs it has.
        moments: of every leader.

    Raises:
        OutputError: it cannot be written.
    """
    with complete_file(path):
        writer = gguf.GGUFWriter(part_path(path), _KIND)
        del writer.kv_data[0][gguf.Keys.General.ARCHITECTURE]  # this is not a model
        writer.add_type(_KIND)
        writer.add_string(_FINGERPRINT, origin.fingerprint)
        writer.add_string(_DATASET, origin.dataset)
        writer.add_uint32(_CHUNKS, origin.chunk_count)
        writer.add_uint32(_CHUNK_SIZE, origin.chunk_size)
        if origin.rotation:
            writer.add_string(ROTATION_KEY, origin.rotation)
        writer.add_uint64(_ROWS, next(iter(moments.values())).n_rows)
        writer.add_array(_MATRICES, list(leaders))
        writer.add_array(_LEADERS, list(leaders.values()))
        for name, found in moments.items():
            writer.add_tensor(name + _SUMS, found.diagonal)
            for number, block in enumerate(found.blocks):
                writer.add_tensor(f"{name}.{number}", np.ascontiguousarray(block, np.float32))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


@dataclass(frozen=True, slots=True)
class _Layer:
    """One file: its header, and what it says of itself."""

    header: GgufHeader
    origin: Origin
    leaders: Mapping[str, str]
    n_rows: int

    def sums(self, name: str) -> ColumnSums:
        """The diagonal, of one of its matrices."""
        leader, path = self.leaders[name], self.header.path
        found = [t for t in self.header.tensors if t.name == leader + _SUMS]
        if len(found) != 1 or found[0].type.name != "f32":
            raise FileFormatError(f"{path}: the sums of {leader} are missing")
        with WatchedFile(path) as watch:
            values = np.array(tensor_array(self.header, found[0]), np.float32).reshape(-1)
            if complaint := watch.complaint():
                raise FileFormatError(complaint)
        # written so that NaN fails too
        if not (np.isfinite(values) & (values >= 0)).all():
            raise FileFormatError(f"{path}: the sums of {leader} are damaged")
        return ColumnSums(values, self.n_rows)

    def moments(self, name: str) -> Moments:
        """Of one of its matrices."""
        leader, path = self.leaders[name], self.header.path
        tensors = {tensor.name: tensor for tensor in self.header.tensors}
        blocks: list[NDArray[np.float32]] = []
        with WatchedFile(path) as watch:
            while (tensor := tensors.get(f"{leader}.{len(blocks)}")) is not None:
                square = len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1]
                if tensor.type.name != "f32" or not square:
                    raise FileFormatError(f"{path}: {tensor.name} is not a square of F32")
                blocks.append(np.array(tensor_array(self.header, tensor), np.float32))
            if complaint := watch.complaint():
                raise FileFormatError(complaint)
        widths = tuple(len(block) for block in blocks)
        if not blocks or widths != block_widths(sum(widths)):
            raise FileFormatError(f"{path}: the second moments of {leader} are missing or damaged")
        return Moments(leader, tuple(blocks), self.n_rows)


def read_layer(path: Path) -> _Layer:
    """Read the header of one file.

    Raises:
        FileFormatError: it holds no statistics, or is damaged.
    """
    try:
        header = read_gguf_header(path)
    except GgufError as error:
        raise FileFormatError(str(error)) from error
    metadata = header.metadata
    if metadata.get("general.type") != _KIND:
        raise FileFormatError(f"{path}: not statistics of --statistics, but another GGUF file")
    names = _names(path, metadata, _MATRICES)
    leaders = dict(zip(names, _names(path, metadata, _LEADERS), strict=False))
    counts = [metadata.get(key) for key in (_ROWS, _CHUNKS, _CHUNK_SIZE)]
    texts = [metadata.get(key, "") for key in (_FINGERPRINT, _DATASET, ROTATION_KEY)]
    good = all(type(count) is int and count > 0 for count in counts)
    if not good or len(leaders) != len(names) or not all(isinstance(t, str) for t in texts):
        raise FileFormatError(f"{path}: damaged statistics: collect them again")
    if texts[2] not in ("", ROTATION):
        raise FileFormatError(f"{path}: {ROTATION_KEY} is {texts[2]!r}; expected {ROTATION!r}")
    rows, chunks, size = (int(count) for count in counts if count is not None)
    return _Layer(header, Origin(texts[0], texts[1], chunks, size, texts[2]), leaders, rows)


def _names(path: Path, metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, GgufArray) or not value.is_text or len(value) > _MOST_MATRICES:
        raise FileFormatError(f"{path}: {key} is not a list of at most {_MOST_MATRICES} names")
    return [str(name) for name in value]


@dataclass(slots=True)
class Statistics:
    """A folder of statistics, opened; the moments themselves are read when they are needed."""

    folder: Path
    origin: Origin
    importance: ImportanceMatrix
    _layers: Mapping[str, _Layer]
    # of the token embedding, if the first layer's reading of it is known
    _reading: _Layer | None = None
    # the last matrices' feedback, since those of one input come one after the other
    _last: tuple[str, Feedback | None] = ("", None)
    #: what compensation could not do as asked, found while it worked
    troubles: dict[str, None] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens that every sum is over."""
        return min(layer.n_rows for layer in self._layers.values())

    @property
    def fewest_tokens(self) -> int:
        """Tokens that the narrowest matrix needs."""
        entries = self.importance.entries.values()
        return FEWEST_TOKENS * min(block_widths(len(entry.sums))[0] for entry in entries)

    @property
    def suffices(self) -> bool:
        """Whether the text was long enough for any matrix."""
        return self.n_tokens >= self.fewest_tokens

    def _layer_of(self, name: str) -> _Layer | None:
        """The file of a matrix."""
        reading = self._reading if name == _LOOKED_UP else None
        return self._layers.get(name) or reading

    def gap(self, tensor: PlannedTensor) -> str:
        """Why a tensor is not compensated; empty if it is."""
        return self._gap(tensor.rule.target, tensor.rule.shape[-1], tensor.type)

    def _gap(self, name: str, n_columns: int, target: GgmlType) -> str:
        layer = self._layer_of(name)
        if layer is None:
            return "there are no statistics"
        if not can_compensate(target):
            return f"{target.name} has no compensated form"
        if layer is self._reading:
            return ""  # of no text
        if name == _LOOKED_UP:
            return "its rows are looked up as well"
        width = block_widths(n_columns)[0]
        if layer.n_rows < FEWEST_TOKENS * width:
            return f"only {layer.n_rows} tokens for {width} columns"
        return ""

    def feedback(self, tensor: PlannedTensor, n_threads: int) -> Feedback | None:
        """What to compensate a tensor with; None: weigh it by its importance instead.

        Raises:
            FileFormatError: its file is damaged.
        """
        return self.feedback_of(tensor.rule.target, tensor.rule.shape[-1], tensor.type, n_threads)

    def feedback_of(
        self, name: str, n_columns: int, target: GgmlType, n_threads: int
    ) -> Feedback | None:
        """The same for a tensor by its name, row length and type."""
        if self._gap(name, n_columns, target):
            return None
        layer = self._layer_of(name)
        assert layer is not None
        leader = layer.leaders[name]
        if self._last[0] != leader:
            self._last = ("", None)  # freed before the next is made
            found = make_feedback(layer.moments(name).blocks, n_threads=n_threads)
            if found is None:
                self.troubles[
                    f"gptq: {leader}: its statistics have no factor; weighted instead"
                ] = None
            elif found.damping > DAMPING:
                text = (
                    f"gptq: {leader}: needed a damping of {found.damping:g} (usually {DAMPING:g})"
                )
                self.troubles[text] = None
            self._last = (leader, found)
        return self._last[1]

    def second_moments(self, name: str) -> tuple[NDArray[np.float32], ...]:
        """Of a matrix's inputs, in diagonal blocks, per token; none if there are no statistics.

        Raises:
            FileFormatError: its file is damaged.
        """
        layer = self._layer_of(name)
        if layer is None:
            return ()
        found = layer.moments(name)
        return tuple(block / np.float32(found.n_rows) for block in found.blocks)

    def notes(self, plan: ConversionPlan) -> tuple[str, ...]:
        """Which quantized matrices are not compensated, and why: a line per reason."""
        reasons: dict[str, list[str]] = {}
        for tensor in plan.tensors:
            name = tensor.rule.target
            # rows that are only looked up have no inputs
            is_multiplied = name in self._layers or tensor.rule.role is not Role.TOKEN_EMBEDDING
            quantized = tensor.type.quantized and len(tensor.rule.shape) == 2
            if quantized and is_multiplied and (reason := self.gap(tensor)):
                reasons.setdefault(reason, []).append(name)
        notes = []
        for reason, names in reasons.items():
            who = f"{names[0]} and {len(names) - 1} more are" if names[1:] else f"{names[0]} is"
            notes.append(f"gptq: {who} weighted by importance instead: {reason}")
        return tuple(notes)

    @property
    def digest(self) -> str:
        """SHA-256 of what the statistics are of, in hexadecimal digits."""
        reading = f" {READING}" if self._reading else ""
        return hashlib.sha256(f"{self.origin}{reading}".encode()).hexdigest()


def read_statistics(folder: Path) -> Statistics:
    """Open a folder of statistics.

    Raises:
        FileFormatError: there is none, a file is damaged, or the files are of different runs.
    """
    paths = statistics_files(folder)
    if not paths or len(paths) > _MOST_FILES or paths == [layer_path(folder, READING)]:
        raise FileFormatError(
            f"--statistics {folder}: no statistics there; --calibrate TEXT collects them"
        )
    layers: dict[str, _Layer] = {}
    entries: dict[str, ColumnSums] = {}
    origins = set()
    reading = None
    for path in paths:
        layer = read_layer(path)
        origins.add(layer.origin)
        if path == layer_path(folder, READING):
            reading = layer
            continue
        for name, leader in layer.leaders.items():
            layers[name] = layer
            entries[name] = entries[leader] if leader in entries else layer.sums(name)
    if len(origins) > 1:
        raise FileFormatError(
            f"--statistics {folder}: its files are of different runs; collect them again"
        )
    (origin,) = origins
    matrix = ImportanceMatrix(
        entries, (origin.dataset,), origin.chunk_count, origin.chunk_size, origin.rotation
    )
    return Statistics(folder, origin, matrix, layers, reading)


def is_compensated(kind: str) -> bool:
    """Whether most matrices of a ``--type`` can be written with compensation."""
    return can_compensate(ggml_type_named(recipe_named(kind).base))


def refuse_idle_statistics(option: str, kind: str) -> None:
    """Refuse compensation of a type that has none.

    Raises:
        UnsupportedError: it would have no effect.
    """
    if not is_compensated(kind):
        raise UnsupportedError(
            f"{option} has no effect with --type {kind}: its matrices are not compensated; choose "
            "iq3_s, q3_k_m, q4_0, iq4_nl, q4_k_m, q5_k_m, q6_k or q8_0"
        )
