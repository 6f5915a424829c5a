"""LoRA adapters in PEFT's format, to be added to the weights while they are converted.

Goes in: folders with ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``. Comes
out: for each stored tensor, matrices whose product is added to it. The arithmetic is that of
``merge_and_unload`` in https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infer_os.models.network import Network, Part
from infer_os.native.lora_adapter import LARGEST_RANK
from infer_os.native.quantize import LowRank

from .adapter_config import ADAPTER_CONFIG, read_adapter_config
from .blocks import widened
from .conversion_plan import ConversionPlan, bare_name
from .decoded import DecodedMatrix
from .errors import FileFormatError, SourceError, UnsupportedError
from .safetensors_file import SafetensorsFile
from .source import AdapterSource
from .tensors import WEIGHT_DTYPES, TensorFile
from .torch_file import TorchFile

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

#: Metadata key of the adapters that were added to the weights, as a shell's words.
ADAPTERS_KEY = "inferos.lora"
#: An adapter's weights, beside its settings; the first file that exists counts.
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)"
    r"(\.(?!weight$)[\w-]+)?(\.weight)?"
)
# PEFT saves embeddings and heads that an adapter is for, as they were
_COPY = re.compile(r"(.+)\.base_layer\.(weight|bias)")
#: No weight is larger than float16 holds, so nothing that is added to one need be.
_LARGEST_VALUE = float(np.finfo(np.float16).max)
_LONGEST_SHOWN = 100
_HASHED = 16  # hexadecimal digits
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of a module: names in the file, and the factor of their product."""

    file: TensorFile
    left: str
    right: str
    embeds: bool
    factor: float

    def load(self) -> LowRank:
        """Both in float32: (n_rows, r) with the factor, and (r, n_columns)."""
        left = widened(self.file.array(self.left))
        right = widened(self.file.array(self.right))
        if self.embeds:  # an embedding is the transposed matrix
            left, right = right.T, left.T
        return LowRank(np.ascontiguousarray(left) * np.float32(self.factor), right)

    @property
    def rank(self) -> int:
        """The inner dimension of the product."""
        return self.file.tensors[self.right].shape[0]

    def shape(self) -> tuple[int, int]:
        """That of the product."""
        rows, columns = (self.file.tensors[name].shape for name in (self.left, self.right))
        return (columns[1], rows[0]) if self.embeds else (rows[0], columns[1])


@dataclass(frozen=True, slots=True)
class OpenAdapter:
    """An open adapter: its pairs of matrices, and its copies of the model's own tensors.

    Both are known by the names of the model's tensors, without a prefix.
    """

    file: TensorFile
    pairs: Mapping[str, Pair]
    copies: Mapping[str, str]


class Adapters:
    """Open adapters, and what they add to a network's tensors."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self._prefixes = prefixes
        self._pairs: dict[str, list[Pair]] = {}
        self._copies: dict[str, list[tuple[TensorFile, str]]] = {}

    def add(self, adapter: OpenAdapter) -> None:
        """Add an adapter."""
        for name, pair in adapter.pairs.items():
            self._pairs.setdefault(name, []).append(pair)
        for name, copy in adapter.copies.items():
            self._copies.setdefault(name, []).append((adapter.file, copy))

    def added(self, stored: str, array: NDArray[Any] | DecodedMatrix) -> LowRank | None:
        """What is added to a stored tensor of that name, of which ``array`` are the values.

        Raises:
            UnsupportedError: an adapter was trained on other values of it.
            FileFormatError: it adds values that cannot be.
            SourceChanged: its file was written to meanwhile.
        """
        name = bare_name(stored, self._prefixes)
        for file, copy in self._copies.get(name, ()):
            if not _are_equal(file.array(copy), array):
                raise UnsupportedError(
                    f"{file.path}: {copy} is not the model's own {stored}: a tensor that was "
                    "trained as a whole is not supported, only plain LoRA"
                )
        pairs = [checked(pair.file.path, name, pair.load) for pair in self._pairs.get(name, ())]
        if not pairs:
            return None
        for pair in self._pairs[name]:
            pair.file.check()
        # the sum of products is the product of matrices side by side
        left = np.concatenate([pair.left for pair in pairs], axis=1)
        right = np.concatenate([pair.right for pair in pairs], axis=0)
        return LowRank(np.ascontiguousarray(left), np.ascontiguousarray(right))


def checked(path: Path, name: str, load: Callable[[], LowRank]) -> LowRank:
    """What an adapter's file adds to a tensor, loaded and seen to be something to compute with.

    Raises:
        FileFormatError: values that are not finite, or larger than those of any weight.
    """
    with np.errstate(all="ignore"):  # what overflows is infinite then
        added = load()
        left = np.abs(added.left).max(axis=0).astype(np.float64)  # (r,)
        right = np.abs(added.right).max(axis=1).astype(np.float64)  # (r,)
        # the product has no larger value than the last
        largest = float(np.max([left.max(), right.max(), left @ right]))
    if not math.isfinite(largest):
        raise FileFormatError(
            f"{path}: what it adds to {name} holds values that are NaN or infinite"
        )
    if largest > _LARGEST_VALUE:
        raise FileFormatError(
            f"{path}: adds values of up to {largest:.2g} to {name}; no weight is larger than "
            f"{_LARGEST_VALUE:.0f}"
        )
    return added


def _are_equal(copy: NDArray[Any], array: NDArray[Any] | DecodedMatrix) -> bool:
    """Whether two tensors have the same values; the copy may be stored with more precision."""
    if copy.shape != array.shape:
        return False
    step = max(1, _CHUNK // max(1, math.prod(copy.shape[1:])))
    return all(
        np.array_equal(widened(copy[at : at + step]), widened(array[at : at + step]))
        for at in range(0, len(copy), step)
    )


def parts_of(network: Network) -> dict[str, Part]:
    """The parts of a network, by every name that they may have in a checkpoint."""
    return {
        name: part for rule in network.rules for part in rule.parts
        for name in (part.source, *part.also)
    }  # fmt: skip


@contextmanager
def open_adapters(
    sources: Sequence[AdapterSource], network: Network, plan: ConversionPlan
) -> Iterator[Adapters]:
    """Open adapters and check them against the model that they are added to.

    Raises:
        SourceError: no adapter, or one of another model.
        FileFormatError: a file that is malformed.
        UnsupportedError: an adapter that does more than LoRA.
    """
    parts = {
        bare_name(part.stored.name, network.prefixes): part.part
        for tensor in plan.tensors for part in tensor.parts
    }  # fmt: skip
    adapters = Adapters(network.prefixes)
    with ExitStack() as stack:
        for source in sources:
            adapters.add(stack.enter_context(open_adapter(source, parts, network.prefixes)))
        yield adapters


@contextmanager
def open_adapter(
    source: AdapterSource, parts: Mapping[str, Part], prefixes: tuple[str, ...]
) -> Iterator[OpenAdapter]:
    """Open an adapter and check it against a model's tensors.

    Args:
        source: the adapter.
        parts: the tensors, by their names without a prefix.
        prefixes: those of the model.

    Raises:
        As :func:`open_adapters`.
    """
    check_folder(source)
    config = read_adapter_config(source.folder / ADAPTER_CONFIG)
    with closing(_open_weights(source)) as file:
        pairs, copies = _read_pairs(source, file)
        for name, pair in pairs.items():
            _check_fit(source, name, pair, parts.get(bare_name(name, prefixes)), config.made_for)
            # only now: a stranger's patterns see as many names as the model has, and no others
            factor = config.factor(name.removesuffix(".weight"), pair.rank)
            pairs[name] = replace(pair, factor=factor * source.scale)
        yield OpenAdapter(
            file,
            {bare_name(name, prefixes): pair for name, pair in pairs.items()},
            {bare_name(name, prefixes): copy for name, copy in copies.items()},
        )


def adapters_digest(sources: Sequence[AdapterSource]) -> str:
    """A hash of what adapters hold and how strongly they count; "" for none.

    Raises:
        SourceError: no adapter.
    """
    digest = hashlib.sha256()
    for source in sources:
        for path in (source.folder / ADAPTER_CONFIG, _weights_path(source)):
            try:
                add_file(digest, path)
            except OSError as error:
                raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
            digest.update(b"\0")
        digest.update(repr(source.scale).encode())
    return digest.hexdigest()[:_HASHED] if sources else ""


def add_file(digest: Hash, path: Path) -> None:
    """Add a file's bytes to a hash: as many as it has now, since some files have no end.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while chunk := file.read(min(left, _CHUNK)):
            digest.update(chunk)
            left -= len(chunk)


def check_folder(source: AdapterSource) -> None:
    """See that a folder has the files of an adapter.

    Raises:
        SourceError: it has not.
    """
    _weights_path(source)


def _weights_path(source: AdapterSource) -> Path:
    folder = source.folder
    if not (folder / ADAPTER_CONFIG).is_file():
        raise SourceError(
            f"{source.option} {folder}: not a LoRA adapter: it has no {ADAPTER_CONFIG}"
        )
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise SourceError(
        f"{source.option} {folder}: it has no weights, {' or '.join(ADAPTER_WEIGHTS)}"
    )


def _open_weights(source: AdapterSource) -> TensorFile:
    path = _weights_path(source)
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _read_pairs(source: AdapterSource, file: TensorFile) -> tuple[dict[str, Pair], dict[str, str]]:
    """The pairs of matrices, and the names of copies, by the model's name of the tensor."""
    found: dict[str, dict[str, str]] = {}
    copies: dict[str, str] = {}
    for name, tensor in file.tensors.items():
        if copied := _COPY.fullmatch(name.removeprefix(_MODEL)):
            copies[f"{copied[1]}.{copied[2]}"] = name
            continue
        match = _KEY.fullmatch(name.removeprefix(_MODEL))
        if match is None:
            raise UnsupportedError(f"{file.path}: {name}: not a matrix of plain LoRA")
        if len(tensor.shape) != 2 or tensor.dtype not in WEIGHT_DTYPES:
            raise FileFormatError(f"{file.path}: {name}: {tensor.dtype} of shape {tensor.shape}")
        kinds = found.setdefault(match["module"], {})
        if kinds.setdefault(match["kind"], name) != name:
            raise UnsupportedError(f"{file.path}: {match['module']}: more than one adapter")
    if not found:
        raise SourceError(f"{file.path}: holds no matrices")
    pairs = {}
    for module, kinds in found.items():
        embeds = "lora_embedding_A" in kinds
        a, b = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A", "lora_B")
        if set(kinds) != {a, b}:
            raise FileFormatError(
                f"{file.path}: {module}: has {', '.join(kinds)}; expected both A and B"
            )
        rank, other = file.tensors[kinds[a]].shape[0], file.tensors[kinds[b]].shape[1]
        if rank != other:
            raise FileFormatError(f"{file.path}: {module}: matrices of rank {rank} and {other}")
        if not 1 <= rank <= LARGEST_RANK:
            raise UnsupportedError(
                f"{file.path}: {module}: matrices of rank {rank}; expected 1 to {LARGEST_RANK}"
            )
        pairs[f"{module}.weight"] = Pair(file, kinds[b], kinds[a], embeds, source.scale)
    return pairs, copies


def _check_fit(
    source: AdapterSource,
    name: str,
    pair: Pair,
    part: Part | None,
    made_for: str,
) -> None:
    hint = f"; it was made for {made_for[:_LONGEST_SHOWN]}" if made_for else ""
    if part is None:
        raise SourceError(f"{source.title}: this model has no {name}{hint}")
    wanted = part.shape[::-1] if part.transform.transposes else part.shape
    if pair.shape() != wanted:
        raise SourceError(
            f"{source.title}: {name}: adds a matrix of shape {pair.shape()} to one of "
            f"{wanted}{hint}"
        )
