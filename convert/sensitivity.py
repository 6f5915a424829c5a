"""What every matrix of a model loses in every type, as a change of its output distribution.

Goes in: a model in Q8_0, its statistics, and tokens. Comes out: a :class:`Sensitivity`, which a
file in the folder of the statistics keeps. The loss of a layer, the trace of E H E^T over its
statistics H, is computed for each type from a sample of rows, with the errors E that the conversion
would make. Rounding a group of matrices alone and comparing the model's output says how many nats
per token a unit of it is worth; for small errors, these losses add up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.models.weight_types import TENSOR_TYPES, Recipe
from infer_os.native.compensation import compensate_rows
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.gguf_file import GgufHeader, GgufTensor, padded, read_gguf_header
from infer_os.native.quantize import needed_importance, quantize_rows
from infer_os.native.scoring import WindowSettings
from infer_os.sizes import size_text

from .errors import FileFormatError, UnsupportedError
from .gguf_writer import complete_file, part_path
from .mixture import CANDIDATES, Choice, Option, WeightBudget, choose_types, mixture_recipe
from .probing import Progress, decoded, probe_groups, rounded_rows, stored_rows
from .settings import ConvertSettings
from .statistics import Statistics

#: The file in the folder of the statistics.
FILE = "sensitivity.json"

# rows of a matrix whose losses stand for all; rows are quantized independently of each other
_SAMPLED_ROWS = 256
# matrices of the same kind in neighbouring layers are probed together: so many groups at most
_MOST_LAYER_GROUPS = 6
_PROBED_WINDOWS = 8
_LARGEST_FILE = 64 << 20
_VERSION = 3

Steps = Callable[[str], Progress | None]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What may be chosen for each matrix, and how large the other tensors are.

    ``fixed_bytes`` are those of the tensors without a choice, ``origin`` says what statistics it is
    of.
    """

    options: Mapping[str, tuple[Option, ...]]
    sizes: Mapping[str, int]
    n_values: int
    fixed_bytes: int
    origin: str

    def choose(self, budget: WeightBudget, besides: int) -> Choice:
        """The types that lose least within a budget.

        Args:
            budget: bits per weight, or bytes of the file.
            besides: bytes of the file apart from the matrices that there is a choice for.

        Raises:
            UnsupportedError: the smallest file is larger.
        """
        # a file of so many bytes has every matrix at a multiple of the alignment
        in_file = {
            name: tuple(replace(o, n_bytes=padded(o.n_bytes)) for o in found)
            for name, found in self.options.items()
        }
        if budget.n_bytes:
            choice = choose_types(in_file, budget.n_bytes - besides)
        else:
            room = int(budget.bits * self.n_values / 8) - self.fixed_bytes
            choice = choose_types(self.options, room)
        if choice is None:
            bits = 8 * (self.fixed_bytes + _least(self.options)) / self.n_values
            raise UnsupportedError(
                f"{budget.option}: the smallest file of this model has "
                f"{math.ceil(bits * 100) / 100:.2f} bits per weight, "
                f"{size_text(besides + _least(in_file), up=True)}"
            )
        return choice

    def recipe(self, budget: WeightBudget, besides: int) -> tuple[Recipe, float]:
        """The recipe of what is chosen, and its loss; see :meth:`choose`."""
        choice = self.choose(budget, besides)
        return mixture_recipe(budget, choice, self.sizes), choice.loss


def _least(options: Mapping[str, tuple[Option, ...]]) -> int:
    return sum(min(option.n_bytes for option in found) for found in options.values())


def measure_sensitivity(
    model: Path,
    statistics: Statistics,
    windows: NDArray[np.int32],
    place: Path,
    *,
    n_threads: int,
    steps: Steps,
) -> Sensitivity:
    """Measure a model in Q8_0.

    Args:
        model: the GGUF file.
        statistics: of it.
        windows: (n_windows, n_ctx) of the calibration text.
        place: a folder with room for a copy of the file.
        n_threads: threads; the result does not depend on them.
        steps: shows the steps and their progress.

    Raises:
        FileFormatError: a file of statistics is damaged.
        NativeError: the model cannot be loaded, or decoding failed or was interrupted.
    """
    header = read_gguf_header(model)
    matrices = [t for t in header.tensors if len(t.shape) == 2 and t.type.name == "q8_0"]
    progress = steps("measuring types")
    losses: dict[str, dict[str, float]] = {}
    for number, tensor in enumerate(matrices, 1):
        losses[tensor.name] = _losses(header, tensor, statistics, n_threads)
        if progress:
            progress(number, len(matrices))
    groups = list(_groups(matrices))
    settings = WindowSettings(n_threads, windows.shape[1])
    measured = probe_groups(
        header, groups, windows[:_PROBED_WINDOWS], settings, place, steps("probing matrices")
    )
    options: dict[str, tuple[Option, ...]] = {}
    for group, nats in zip(groups, measured, strict=True):
        unit = sum(losses[tensor.name].pop("") for tensor in group)
        for tensor in group:
            found = losses[tensor.name].items()
            options[tensor.name] = tuple(
                Option(kind, _n_bytes(tensor, kind), value * nats / unit if unit else 0.0)
                for kind, value in found
            )
    chosen = sum(tensor.n_bytes for tensor in matrices)
    return Sensitivity(
        options, {t.name: int(np.prod(t.shape, dtype=np.int64)) for t in matrices},
        header.n_params, header.weight_bytes - chosen, statistics.digest,
    )  # fmt: skip


def _n_bytes(tensor: GgufTensor, kind: str) -> int:
    return ggml_type_named(kind).row_bytes(int(np.prod(tensor.shape, dtype=np.int64)))


def _candidates(n_columns: int) -> Iterator[str]:
    """Types whose blocks divide the rows; those of 32 values only where no finer choice is."""
    for kind in CANDIDATES:
        if n_columns % TENSOR_TYPES[kind].block == 0 and (kind != "q5_0" or n_columns % 256):
            yield kind


def _losses(
    header: GgufHeader, tensor: GgufTensor, statistics: Statistics, n_threads: int
) -> dict[str, float]:
    """The loss of a matrix in each type, and under "" when it is rounded as a probe."""
    n_columns = tensor.shape[0]
    rows = stored_rows(header, tensor)
    picked = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_ROWS)).astype(int))
    sample = np.ascontiguousarray(rows[picked])
    values = decoded(sample, "q8_0")
    moments = statistics.second_moments(tensor.name)
    importance = statistics.importance.weights(tensor.name)

    def loss(error: NDArray[np.float32]) -> float:
        return _squared(error, moments) * len(rows) / len(picked)

    found = {"": loss(values - decoded(rounded_rows(sample, n_threads), "q8_0"))}
    for kind in _candidates(n_columns):
        target = ggml_type_named(kind)
        if kind == "q8_0":
            # the values are those of Q8_0 already: half a step in the mean square is what was lost
            steps = np.repeat(_scales(sample), 32, axis=1)
            found[kind] = _variance(np.square(steps) / np.float32(12), moments)
            found[kind] *= len(rows) / len(picked)
            continue
        feedback = statistics.feedback_of(tensor.name, n_columns, target, n_threads)
        if feedback is None:
            weights = needed_importance(importance, target, n_columns)
            data, _ = quantize_rows(values, target, n_threads=n_threads, importance=weights)
        else:
            data, _ = compensate_rows(values, target, feedback, n_threads=n_threads)
        found[kind] = loss(values - decoded(data, kind))
    return found


def _scales(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The scale of every block of Q8_0: (n_rows, n_blocks)."""
    blocks = rows.reshape(len(rows), -1, 34)
    return np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0].astype(np.float32)


def _squared(error: NDArray[np.float32], moments: tuple[NDArray[np.float32], ...]) -> float:
    """The trace of E H E^T, H in diagonal blocks; the squares of E if there is no H."""
    if not moments:
        return float((error.astype(np.float64) ** 2).sum())
    total, at = 0.0, 0
    for block in moments:
        part = error[:, at : at + len(block)]
        total += float(((part @ block) * part).sum(dtype=np.float64))
        at += len(block)
    return total


def _variance(squares: NDArray[np.float32], moments: tuple[NDArray[np.float32], ...]) -> float:
    """The same for errors that do not depend on each other, of these mean squares."""
    if not moments:
        return float(squares.sum(dtype=np.float64))
    diagonal = np.concatenate([np.diag(block) for block in moments])
    return float((squares @ diagonal).sum(dtype=np.float64))


def _groups(matrices: list[GgufTensor]) -> Iterator[list[GgufTensor]]:
    """Matrices of the same kind in neighbouring layers."""
    kinds: dict[str, list[GgufTensor]] = {}
    for tensor in matrices:
        name = tensor.name
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        kinds.setdefault(kind, []).append(tensor)
    for found in kinds.values():
        for group in np.array_split(np.arange(len(found)), min(len(found), _MOST_LAYER_GROUPS)):
            yield [found[i] for i in group]


def wanted_sensitivity(
    settings: ConvertSettings, statistics: Statistics | None
) -> Sensitivity | None:
    """What says which types are best within the budget; None without a budget.

    Raises:
        UnsupportedError: nothing says it.
        FileFormatError: what says it cannot be read.
    """
    if settings.budget is None:
        return None
    if statistics is not None:
        return read_sensitivity(statistics, settings.budget)
    option = settings.budget.option
    if settings.dry_run:
        raise UnsupportedError(
            f"{option} with --dry-run: add --statistics DIR, a folder that an earlier run with "
            "--calibrate TEXT saved; without one, drop --dry-run and add --calibrate TEXT"
        )
    raise UnsupportedError(
        f"{option}: add --calibrate TEXT, a text that shows what each matrix loses in each type"
    )


def write_sensitivity(found: Sensitivity, folder: Path) -> None:
    """Keep it with the statistics.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / FILE
    record = {
        "version": _VERSION, "origin": found.origin, "values": found.n_values,
        "fixed_bytes": found.fixed_bytes,
        "matrices": {
            name: {"values": found.sizes[name], "options": [asdict(option) for option in options]}
            for name, options in found.options.items()
        },
    }  # fmt: skip
    with complete_file(path):
        part_path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_sensitivity(statistics: Statistics, budget: WeightBudget) -> Sensitivity:
    """What was measured with statistics.

    Raises:
        FileFormatError: nothing, by another version of this program, or the file is damaged.
    """
    path = statistics.folder / FILE
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise FileFormatError(f"{path}: larger than {_LARGEST_FILE} bytes; not one of ours")
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(
            f"{budget.option}: {statistics.folder} does not say what each matrix loses; "
            "add --calibrate TEXT once, which measures it"
        ) from None
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path}: cannot be read: {error}") from error
    try:
        if record["version"] != _VERSION:
            raise FileFormatError(
                f"{path}: another version of infer-os measured it; add --calibrate TEXT once, "
                "which measures again"
            )
        found = _from_json(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path}: damaged; measure it again") from error
    if found.origin != statistics.digest:
        raise FileFormatError(f"{path}: is of other statistics; measure it again")
    return found


def _from_json(record: Any) -> Sensitivity:
    """A checked record; anything wrong raises one of the usual errors."""
    if not record["matrices"]:
        raise ValueError
    sizes = {name: _count(row["values"]) for name, row in record["matrices"].items()}
    options = {
        name: tuple(_option(one, sizes[name]) for one in row["options"])
        for name, row in record["matrices"].items()
    }
    if not all(options.values()):
        raise ValueError
    return Sensitivity(
        options, sizes, _count(record["values"]), _count(record["fixed_bytes"]),
        str(record["origin"]),
    )  # fmt: skip


def _option(row: Any, n_values: int) -> Option:
    kind, n_bytes, loss = row["type"], _count(row["n_bytes"]), row["loss"]
    if kind not in CANDIDATES or n_bytes != ggml_type_named(kind).row_bytes(n_values):
        raise ValueError
    if type(loss) is not float or not 0 <= loss < float("inf"):
        raise ValueError
    return Option(kind, n_bytes, loss)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError
    return value
