"""Convert a checkpoint folder to one GGUF file: checkpoint → plan → blocks → file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import infer_os
import numpy as np
from infer_os.models import describe
from infer_os.models.network import MetadataValue, Network
from infer_os.native.quantize import QuantizeStats
from numpy.typing import NDArray

from .blocks import quantized_blocks
from .checkpoint import Checkpoint, open_checkpoint
from .errors import SourceError, UnsupportedError
from .gguf_writer import GgufOutput, check_output, complete_file, gguf_header
from .plan import Job, Plan, make_plan
from .report import ClassTable, ConversionReport, peak_rss_bytes
from .tensors import TensorFile
from .tokenizer import read_vocabulary
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
        header = gguf_header(network.graph, _metadata(settings, network, recipe), vocabulary, plan)
        with complete_file(target) as handle:
            output = GgufOutput(handle, header, plan)
            _write_tensors(checkpoint, plan, output, table, settings.n_threads, progress)
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
    output: GgufOutput,
    table: ClassTable,
    n_threads: int,
    progress: Progress | None,
) -> None:
    total = sum(part.n_bytes for tensor in plan.tensors for part in tensor.parts)
    done = 0
    for path, jobs in plan.by_shard():
        with checkpoint.open(path) as file:
            for job in jobs:
                at = job.at
                for data, n_bytes, stats in _job_blocks(file, job, n_threads):
                    output.write(job.tensor, at, data)
                    table.add(job.tensor, stats)
                    at += data.nbytes
                    done += n_bytes
                    if progress:
                        progress(done, total)


def _job_blocks(
    file: TensorFile, job: Job, n_threads: int
) -> Iterator[tuple[NDArray[np.uint8], int, QuantizeStats]]:
    """Quantized blocks of one stored tensor; refuses values that are no numbers."""
    name = job.part.stored.name
    blocks = quantized_blocks(job.part.part, file.array(name), job.tensor.type, n_threads=n_threads)
    for data, n_bytes, stats in blocks:
        if stats.n_not_finite:
            raise SourceError(
                f"{file.path}: tensor {name!r} holds {stats.n_not_finite} values that are NaN or "
                "infinite; the checkpoint is damaged"
            )
        yield data, n_bytes, stats
