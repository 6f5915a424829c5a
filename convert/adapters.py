"""LoRA adapters in PEFT's format, to be added to the weights while they are converted.

Goes in: folders with ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``. Comes
out: for each stored tensor, matrices whose product is added to it. The arithmetic is that of
``merge_and_unload`` in https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py.

An adapter that does more than that is refused by the setting that says so.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.models.network import Network, Part
from infer_os.native.quantize import LowRank

from .blocks import widened
from .conversion_plan import ConversionPlan, bare_name
from .decoded import DecodedMatrix
from .errors import FileFormatError, SourceError, UnsupportedError
from .plain_file import read_json
from .safetensors_file import SafetensorsFile
from .source import AdapterSource
from .tensors import WEIGHT_DTYPES, TensorFile
from .torch_file import TorchFile

#: Metadata key of the adapters that were added to the weights, as a shell's words.
ADAPTERS_KEY = "inferos.lora"
#: Files of an adapter: its settings, and its weights, of which the first that exists counts.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)"
    r"(\.(?!weight$)[\w-]+)?(\.weight)?"
)
# PEFT saves embeddings and heads that an adapter is for, as they were
_COPY = re.compile(r"(.+)\.base_layer\.(weight|bias)")
# these change the base weights too, so that adding the product is not enough
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Settings that say how an adapter was trained, or that are read here.
_HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
})  # fmt: skip
_LARGEST_RANK = 1 << 14
_LARGEST_ALPHA = 1e9
_LONGEST_PATTERN = 200
# what patterns are made of; no two repetitions inside each other, which could take forever
_PATTERN = re.compile(r"(?:\\d\+|\\\.|[\w.^$|()-])*")
_HASHED = 16  # hexadecimal digits
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What a product is multiplied by: ``alpha / r``, or over ``sqrt(r)`` for rsLoRA."""

    path: Path
    r: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    by_root: bool

    def of(self, module: str, rank: int) -> float:
        """The factor for a module whose matrices have this rank."""
        r = self._found(module, self.rank_pattern, self.r)
        if r != rank:
            raise FileFormatError(
                f"{self.path}: {module} has matrices of rank {rank}, but {ADAPTER_CONFIG} says {r}"
            )
        alpha = self._found(module, self.alpha_pattern, self.alpha)
        return float(alpha) / (math.sqrt(rank) if self.by_root else rank)

    @staticmethod
    def _found(module: str, patterns: Mapping[str, Any], usual: float) -> float:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return usual


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
        """
        name = bare_name(stored, self._prefixes)
        for file, copy in self._copies.get(name, ()):
            if not _are_equal(file.array(copy), array):
                raise UnsupportedError(
                    f"{file.path}: {copy} is not the model's own {stored}: a tensor that was "
                    "trained as a whole is not supported, only plain LoRA"
                )
        pairs = [pair.load() for pair in self._pairs.get(name, ())]
        if not pairs:
            return None
        # the sum of products is the product of matrices side by side
        left = np.concatenate([pair.left for pair in pairs], axis=1)
        right = np.concatenate([pair.right for pair in pairs], axis=0)
        return LowRank(np.ascontiguousarray(left), np.ascontiguousarray(right))


def _are_equal(copy: NDArray[Any], array: NDArray[Any] | DecodedMatrix) -> bool:
    """Whether two tensors have the same values; the copy may be stored with more precision."""
    if copy.shape != array.shape:
        return False
    step = max(1, _CHUNK // max(1, math.prod(copy.shape[1:])))
    return all(
        np.array_equal(widened(copy[at : at + step]), widened(array[at : at + step]))
        for at in range(0, len(copy), step)
    )


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
    config = _read_config(source)
    with closing(_open_weights(source)) as file:
        pairs, copies = _read_pairs(source, config, file)
        for name, pair in pairs.items():
            _check_fit(source, name, pair, parts.get(bare_name(name, prefixes)), config)
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
                with path.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        digest.update(chunk)
            except OSError as error:
                raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
            digest.update(b"\0")
        digest.update(repr(source.scale).encode())
    return digest.hexdigest()[:_HASHED] if sources else ""


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


def _read_config(source: AdapterSource) -> dict[str, Any]:
    path = source.folder / ADAPTER_CONFIG
    _weights_path(source)
    config = read_json(path) or {}
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{path}: a {kind} adapter; only LORA can be added to the weights")
    if config.get("use_dora"):
        raise UnsupportedError(f"{path}: use_dora: DoRA is not supported, only plain LoRA")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise UnsupportedError(
            f"{path}: init_lora_weights is {start!r}, which changed the model's own weights too; "
            "save the adapter as plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise UnsupportedError(f"{path}: bias is {config['bias']!r}; only 'none' is supported")
    for key, value in config.items():
        if value and key not in _HARMLESS and key not in ("bias", "loftq_config"):
            raise UnsupportedError(f"{path}: {key} is {value!r}, which is not supported")
    return config


def _read_pairs(
    source: AdapterSource, config: Mapping[str, Any], file: TensorFile
) -> tuple[dict[str, Pair], dict[str, str]]:
    """The pairs of matrices, and the names of copies, by the model's name of the tensor."""
    scaling = _read_scaling(file.path.with_name(ADAPTER_CONFIG), config)
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
        factor = scaling.of(module, rank) * source.scale
        pairs[f"{module}.weight"] = Pair(file, kinds[b], kinds[a], embeds, factor)
    return pairs, copies


def _read_scaling(path: Path, config: Mapping[str, Any]) -> _Scaling:
    ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    for key, table in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(table, dict):
            raise FileFormatError(f"{path}: {key} is not a table")
        for pattern, value in table.items():
            if len(pattern) > _LONGEST_PATTERN or not _PATTERN.fullmatch(pattern):
                raise UnsupportedError(f"{path}: {key}: the pattern {pattern[:80]!r}")
            _check_number(path, f"{key} of {pattern!r}", value)
    _check_number(path, "r", config.get("r"))
    _check_number(path, "lora_alpha", config.get("lora_alpha"))
    by_root = bool(config.get("use_rslora"))
    return _Scaling(path, config["r"], config["lora_alpha"], ranks, alphas, by_root)


def _check_number(path: Path, what: str, value: Any) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not 0 < value <= _LARGEST_ALPHA:
        raise FileFormatError(f"{path}: {what} is {value!r}; expected a positive number")


def _check_fit(
    source: AdapterSource,
    name: str,
    pair: Pair,
    part: Part | None,
    config: Mapping[str, Any],
) -> None:
    made_for = config.get("base_model_name_or_path")
    hint = f"; it was made for {made_for}" if isinstance(made_for, str) and made_for else ""
    if part is None:
        raise SourceError(f"{source.title}: this model has no {name}{hint}")
    wanted = part.shape[::-1] if part.transform.transposes else part.shape
    if pair.shape() != wanted:
        raise SourceError(
            f"{source.title}: {name}: adds a matrix of shape {pair.shape()} to one of "
            f"{wanted}{hint}"
        )
