"""Convert a checkpoint folder to one GGUF file: checkpoint → plan → blocks → file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import infer_os
from infer_os.models import describe
from infer_os.models.network import MetadataValue, Network

from .blocks import quantized_blocks
from .checkpoint import Checkpoint, open_checkpoint
from .errors import SourceError, UnsupportedError
from .gguf_writer import GgufStream, check_output, complete_file
from .plan import Plan, PlannedTensor, make_plan
from .report import ClassTable, ConversionReport, peak_rss_bytes
from .tensors import TensorFile
from .tokenizer import Vocabulary, read_vocabulary
from .types import Recipe, recipe_named

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """What to convert and how. ``output`` None names the file after the folder and the type."""

    source: Path
    output: Path | None = None
    type: str = "q4_0"
    threads: int = 0
    force: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        recipe_named(self.type)
        if self.threads < 0:
            raise UnsupportedError(f"--threads {self.threads}: expected a number from 1")

    @property
    def n_threads(self) -> int:
        """Threads of the quantizer: as asked, else one per usable core."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def target(self) -> Path:
        """The file to write."""
        if self.output is not None:
            return self.output
        name = self.source.resolve().name
        return Path(f"{name}-{self.type.lower()}.gguf")


def convert(settings: ConvertSettings, progress: Progress | None = None) -> ConversionReport:
    """Convert a checkpoint folder.

    Args:
        settings: what to do.
        progress: called with source bytes done and in all.

    Raises:
        ConvertError: nothing was written, and an existing output is untouched.
        ConfigError: the config describes no supported network.
    """
    started = time.monotonic()
    recipe = recipe_named(settings.type)
    checkpoint = open_checkpoint(settings.source)
    network = describe(checkpoint.config)
    plan = make_plan(network, checkpoint.tensors, recipe)
    vocabulary = read_vocabulary(settings.source, checkpoint.config, network.vocab_rows)
    table = ClassTable(plan)
    target = settings.target
    if not settings.dry_run:
        check_output(target, plan.n_bytes, force=settings.force)
        with complete_file(target) as part:
            stream = GgufStream(
                part, network.graph, _metadata(settings, network, recipe), vocabulary, plan
            )
            try:
                _write_tensors(checkpoint, plan, stream, table, settings.n_threads, progress)
            finally:
                stream.close()
    return ConversionReport(
        output=target,
        architecture=network.architecture,
        graph=network.graph,
        type=settings.type.lower(),
        n_params=network.n_params,
        n_bytes=plan.n_bytes if settings.dry_run else target.stat().st_size,
        classes=table.rows(),
        notes=(*network.notes, *vocabulary.notes, *plan.notes),
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        written=not settings.dry_run,
    )


def _metadata(
    settings: ConvertSettings, network: Network, recipe: Recipe
) -> dict[str, MetadataValue]:
    """Keys of the file: the graph's own, and where the weights truly come from."""
    return {
        "general.name": settings.source.resolve().name,
        "general.file_type": recipe.file_type,
        "general.quantization_version": 2,
        "inferos.version": infer_os.__version__,
        "inferos.source.architecture": network.architecture,
        **{f"{network.graph}.{key}": value for key, value in network.metadata.items()},
    }


def _write_tensors(
    checkpoint: Checkpoint,
    plan: Plan,
    stream: GgufStream,
    table: ClassTable,
    n_threads: int,
    progress: Progress | None,
) -> None:
    total = sum(_source_bytes(tensor) for tensor in plan.tensors)
    done = 0

    def report(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress(done, total)

    # a shard stays open while neighbouring tensors come from it
    for path, tensors in groupby(plan.tensors, key=lambda t: t.source.path if t.source else None):
        if path is None:
            for tensor in tensors:
                stream.write_zeros(tensor)
                stream.end_tensor()
            continue
        with checkpoint.open(path) as file:
            for tensor in tensors:
                _write_tensor(file, tensor, stream, table, n_threads, report)


def _write_tensor(
    file: TensorFile,
    tensor: PlannedTensor,
    stream: GgufStream,
    table: ClassTable,
    n_threads: int,
    report: Callable[[int], None],
) -> None:
    if tensor.source is None:
        raise SourceError(f"{tensor.rule.target}: has no source")
    array = file.array(tensor.source.name)
    for data, n_bytes, stats in quantized_blocks(tensor, array, n_threads=n_threads):
        if stats.n_not_finite:
            raise SourceError(
                f"{file.path}: tensor {tensor.source.name!r} holds {stats.n_not_finite} values "
                "that are NaN or infinite; the checkpoint is damaged"
            )
        stream.write(data)
        table.add(tensor, stats)
        report(n_bytes)
    stream.end_tensor()


def _source_bytes(tensor: PlannedTensor) -> int:
    if tensor.source is None:
        return 0
    count = 1
    for size in tensor.source.shape:
        count *= size
    return count * (4 if tensor.source.dtype == "F32" else 2)
