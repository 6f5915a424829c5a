"""Collect statistics: run a converted model over text, a few layers' sums at a time.

Goes in: a GGUF file (q8_0 or finer) and a text. Comes out: a folder of :mod:`.statistics`. Files
that an earlier run of the same model and tokens left there stay, so a run that was killed
continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.models.rotation import ROTATION_KEY
from infer_os.native.errors import EvaluateError
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.moments import MomentCollector, collected_bytes, moment_bytes
from infer_os.native.scoring import Subject, WindowSettings

from .calibrate import decode_observed, open_windows
from .embedding_reading import EMBEDDING, embedding_moments
from .errors import FileFormatError, OutputError, SourceError
from .gguf_writer import check_output
from .statistics import (
    READING,
    Origin,
    Statistics,
    layer_path,
    read_layer,
    read_statistics,
    statistics_files,
    write_layer,
)

Progress = Callable[[int, int], None]

#: Bytes of sums that are held at a time, unless asked otherwise; the bytes do not depend on it.
DEFAULT_MEMORY = 2_000_000_000

_HASHED_BYTES = 1 << 20
_HEAD = "output.weight"
# these have the same input in every graph
_SAME_INPUT = ("attn_q.", "attn_k.", "attn_v.")


def collect_statistics(
    model: Path,
    text: Path | str,
    folder: Path,
    *,
    dataset: str,
    n_threads: int,
    memory: int = DEFAULT_MEMORY,
    force: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Decode a text as :func:`.calibrate.collect_importance` does, and keep second moments.

    Args:
        model: a GGUF file.
        text: a file of UTF-8 text, or the text itself.
        folder: where the files go; made if it does not exist.
        dataset: the text's name, for the files.
        n_threads: threads; the sums do not depend on them.
        memory: bytes of sums to hold at a time. The text is decoded once for as many layers as fit,
            at least one.
        force: replace statistics of another model or text.
        progress: called with chunks done and in all.

    Raises:
        SourceError: no such text, it does not fill a chunk, or activations are not finite.
        OutputError: the folder or a file cannot be written.
        NativeError: the model cannot be loaded, or decoding failed or was interrupted.
    """
    header = read_gguf_header(model)
    layers = _layers(header)
    with open_windows(model, text, n_threads=n_threads) as (loaded, windows, settings):
        origin = Origin(
            _fingerprint(model, windows), dataset, len(windows), settings.n_ctx,
            str(header.metadata.get(ROTATION_KEY, "")),
        )  # fmt: skip
        _make_folder(folder, origin, force=force)
        missing = {
            layer: matrices
            for layer, matrices in layers.items()
            if not _is_there(layer_path(folder, layer), origin)
        }
        n_bytes = sum(
            moment_bytes(n) for matrices in missing.values() for n in _own_columns(matrices)
        )
        check_output(folder / "statistics", n_bytes, force=True)
        groups = list(_groups(missing, memory))
        for number, group in enumerate(groups):
            whole = _share(progress, number, len(groups))
            try:
                _collect_group(Subject(loaded), windows, settings, group, folder, origin, whole)
            except EvaluateError as error:
                raise SourceError(f"calibration with {dataset}: {error}") from error
        _keep_embedding(header, folder, origin)
    return read_statistics(folder)


def _layers(header: GgufHeader) -> dict[str, dict[str, int]]:
    """The matrices of each layer, and their columns; a head that is the embedding counts."""
    found: dict[str, dict[str, int]] = {}
    names = {tensor.name for tensor in header.tensors}
    head = _HEAD if _HEAD in names else EMBEDDING
    for tensor in header.tensors:
        name = tensor.name
        if len(tensor.shape) != 2 or not name.endswith(".weight"):
            continue
        if name.startswith("blk."):
            found.setdefault(".".join(name.split(".")[:2]), {})[name] = tensor.shape[0]
        elif name == head:
            found["output"] = {name: tensor.shape[0]}
    return found


def _groups(
    layers: Mapping[str, Mapping[str, int]], memory: int
) -> Iterator[dict[str, Mapping[str, int]]]:
    """Layers whose sums fit into so many bytes together."""
    group: dict[str, Mapping[str, int]] = {}
    used = 0
    for layer, matrices in layers.items():
        n_bytes = sum(map(collected_bytes, _own_columns(matrices)))
        if group and used + n_bytes > memory:
            yield group
            group, used = {}, 0
        group[layer] = matrices
        used += n_bytes
    if group:
        yield group


def _own_columns(matrices: Mapping[str, int]) -> list[int]:
    """Columns of the matrices of a layer that have sums of their own; the graph may share more."""
    shared = [name for name in matrices if any(part in name for part in _SAME_INPUT)]
    return [n for name, n in matrices.items() if name not in shared[1:]]


def _collect_group(
    subject: Subject,
    windows: NDArray[np.int32],
    settings: WindowSettings,
    layers: Mapping[str, Mapping[str, int]],
    folder: Path,
    origin: Origin,
    progress: Progress | None,
) -> None:
    wanted = {name: n for matrices in layers.values() for name, n in matrices.items()}
    with MomentCollector(wanted, settings.n_threads) as collector:
        decode_observed(subject, windows, settings, collector, progress)
        leaders = collector.leaders()
        for layer, matrices in layers.items():
            # a matrix that no graph multiplies by has no sums: an embedding's positions
            of_layer = {name: leaders[name] for name in matrices if name in leaders}
            moments = {name: collector.moments(name) for name in dict.fromkeys(of_layer.values())}
            if moments:
                write_layer(layer_path(folder, layer), origin, of_layer, moments)


def _keep_embedding(header: GgufHeader, folder: Path, origin: Origin) -> None:
    """Write what the first layer reads of the embedding, next to the layers."""
    path = layer_path(folder, READING)
    if not _is_there(path, origin) and (found := embedding_moments(header)) is not None:
        write_layer(path, origin, {EMBEDDING: EMBEDDING}, {EMBEDDING: found})


def _is_there(path: Path, origin: Origin) -> bool:
    try:
        return path.exists() and read_layer(path).origin == origin
    except FileFormatError:
        return False


def _share(progress: Progress | None, number: int, n_groups: int) -> Progress | None:
    """The progress of one of several passes, as that of all."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, n_groups * total)


def _make_folder(folder: Path, origin: Origin, *, force: bool) -> None:
    """A folder without statistics of anything else.

    Raises:
        OutputError: it cannot be made, or has such statistics (without ``force``).
    """
    try:
        folder.mkdir(exist_ok=True)
        strangers = [path for path in statistics_files(folder) if not _is_there(path, origin)]
        if strangers and not force:
            raise OutputError(
                f"--statistics {folder}: has statistics of another model or text; --force replaces "
                "them"
            )
        for path in strangers:
            path.unlink()
    except OSError as error:
        raise OutputError(f"--statistics {folder}: cannot be made: {error.strerror}") from error


def _fingerprint(model: Path, windows: NDArray[np.int32]) -> str:
    """A hash of the model's bytes and of the tokens."""
    digest = hashlib.sha256(windows.tobytes())
    with model.open("rb") as file:
        while data := file.read(_HASHED_BYTES):
            digest.update(data)
    return digest.hexdigest()
