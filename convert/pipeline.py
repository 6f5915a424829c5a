"""Convert a checkpoint to one GGUF file: checkpoint → plan → blocks → file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import infer_os
from infer_os.cache import cache_folder
from infer_os.models.architectures import describe
from infer_os.models.network import ERF_GELU, GELU_KEY, MetadataValue, Network
from infer_os.models.rotation import ROTATION, ROTATION_KEY, fold_rotation
from infer_os.models.weight_types import Recipe
from infer_os.native.quantize import QuantizeStats, quantize_rows
from infer_os.native.residency import peak_rss_bytes

from .adapters import Adapters, open_adapters
from .blocks import ahead, quantized_blocks
from .checkpoint import Checkpoint
from .conversion_plan import ConversionPlan, Job, PlannedTensor, make_plan
from .eight_bit import open_eight_bit
from .errors import DownloadError, SourceError
from .ggml_checkpoint import open_local
from .gguf_writer import GgufOutput, check_output, complete_file, gguf_header, part_path
from .hub_checkpoint import HubCheckpoint, open_hub_checkpoint
from .imatrix import ImportanceMatrix, read_imatrix
from .origins import (
    CONFIG_KEY,
    adapters_origin,
    config_text,
    hub_origin,
    statistics_origin,
    weights_origin,
)
from .report import ClassTable, ConversionReport
from .sensitivity import Sensitivity, wanted_sensitivity
from .settings import ConvertSettings
from .shard_journal import ShardJournal, fingerprint
from .statistics import Statistics, read_statistics, refuse_idle_statistics
from .tensors import TensorFile
from .tokenizer import read_vocabulary
from .types import recipe_named
from .verify import verify_header, verify_job, verify_logits
from .vocabulary import GgufVocabulary
from .weight_checks import check_rotation, weight_notes

Progress = Callable[[int, int], None]

#: Bytes of the checkpoint's pages that this process holds before it releases them.
_HELD_BYTES = 32 << 20

# After these, a conversion from the hub can continue later: what is there stays.
_RESUMABLE = (KeyboardInterrupt, SystemExit, DownloadError)


@dataclass(frozen=True, slots=True)
class _Work:
    """A conversion that has been planned."""

    settings: ConvertSettings
    checkpoint: Checkpoint | HubCheckpoint
    network: Network
    recipe: Recipe
    plan: ConversionPlan
    vocabulary: GgufVocabulary
    table: ClassTable
    weight_notes: tuple[str, ...]
    importance: ImportanceMatrix | None = None
    statistics: Statistics | None = None
    adapters: Adapters | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        read = (*self.checkpoint.notes, *self.network.notes, *self.vocabulary.notes)
        return (*read, *self.weight_notes, *self.plan.notes)

    @property
    def hub(self) -> HubCheckpoint | None:
        return self.checkpoint if isinstance(self.checkpoint, HubCheckpoint) else None

    def jobs(self, path: Path, planned: list[Job]) -> list[Job]:
        """What to write of an open shard; one from the hub is planned again by its content."""
        if self.hub is None:
            return planned
        plan = make_plan(self.network, self.hub.tensors, self.recipe)
        return dict(plan.by_shard())[path]


class _Meter:
    """Bytes downloaded and converted, and their total."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report = report
        self.done = 0
        self.total = total

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self._report and n_bytes:
            self._report(self.done, self.total)


def convert(
    settings: ConvertSettings,
    progress: Progress | None = None,
    importance: ImportanceMatrix | None = None,
    statistics: Statistics | None = None,
    recipe: Recipe | None = None,
) -> ConversionReport:
    """Convert a checkpoint folder, or a model on the hub.

    Args:
        settings: what to do.
        progress: called with source bytes done and in all; a download counts in addition.
        importance: weights to quantize with; None takes those of ``settings.imatrix``, if any.
        statistics: what to compensate errors with, and to weigh other matrices by; None takes
            those of ``settings.statistics``, if any.
        recipe: types to write; None takes that of the type, or what fits into the budget.

    Raises:
        ConvertError: nothing was written, and an existing output is untouched.
        DownloadError: likewise, but the next call continues, as it does after KeyboardInterrupt
            and SystemExit.
        ConfigError: the config describes no supported network.
    """
    started = time.monotonic()
    target = settings.target
    notes: tuple[str, ...] = ()
    if not settings.dry_run:
        # before anything is read or downloaded; the space needed is not known yet
        check_output(target, 0, force=settings.force, source=settings.folder)
    if statistics is None and settings.statistics is not None:
        refuse_idle_statistics("--statistics", settings.type)
        statistics = read_statistics(settings.statistics)
    sensitivity = None if recipe else wanted_sensitivity(settings, statistics)
    if statistics is not None:
        importance = statistics.importance
    elif importance is None and settings.imatrix is not None:
        importance = read_imatrix(settings.imatrix)
    if importance is not None:
        check_rotation(importance, settings)
    with _opened(settings) as checkpoint, ExitStack() as stack:
        first = recipe or recipe_named(settings.type)
        work = _prepare(settings, first, checkpoint, importance, statistics)
        if sensitivity is not None:
            work = _within_budget(work, sensitivity)
        if settings.adapters:
            opened = open_adapters(settings.adapters, work.network, work.plan)
            work = replace(work, adapters=stack.enter_context(opened))
        header = _header(work)
        n_bytes = len(header) + work.plan.padded_bytes()
        if not settings.dry_run:
            room = [(work.hub.folder, work.hub.room())] if work.hub else []
            check_output(
                target, n_bytes, force=settings.force, besides=room, source=settings.folder
            )
            notes = _write(work, header, target, progress)
    network = work.network
    return ConversionReport(
        output=target,
        architecture=network.architecture,
        graph=network.graph,
        type=work.recipe.name,
        n_params=network.n_params,
        n_bytes=n_bytes,
        classes=work.table.rows(),
        notes=(*work.notes, *notes),
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        written=not settings.dry_run,
        verified=settings.verify,
    )


def chosen_recipe(
    settings: ConvertSettings, statistics: Statistics, sensitivity: Sensitivity
) -> tuple[Recipe, float]:
    """The types of least loss with which the file stays within the budget, and their loss.

    Raises:
        ConvertError: the checkpoint cannot be converted, or the smallest file is too large.
    """
    with _opened(replace(settings, dry_run=True, verify=False, keep_source=False)) as checkpoint:
        recipe = recipe_named(settings.type)
        work = _prepare(settings, recipe, checkpoint, statistics.importance, statistics)
        return _chosen(work, sensitivity)


def _chosen(work: _Work, sensitivity: Sensitivity) -> tuple[Recipe, float]:
    """See :func:`chosen_recipe`."""
    assert work.settings.budget is not None
    # which types there are does not change the header's length
    besides = len(_header(work)) + work.plan.padded_bytes(but=sensitivity.options)
    return sensitivity.recipe(work.settings.budget, besides)


def _within_budget(work: _Work, sensitivity: Sensitivity) -> _Work:
    recipe, _ = _chosen(work, sensitivity)
    plan = make_plan(work.network, work.checkpoint.tensors, recipe)
    notes = weight_notes(plan, work.importance, work.statistics)
    return replace(work, recipe=recipe, plan=plan, table=ClassTable(plan), weight_notes=notes)


def _opened(settings: ConvertSettings) -> AbstractContextManager[Checkpoint | HubCheckpoint]:
    if isinstance(settings.source, Path):
        return nullcontext(open_local(settings.source, settings.tokenizer))
    return open_hub_checkpoint(
        settings.source, cache_folder(), keep=settings.keep_source, plan_only=settings.dry_run
    )


def _prepare(
    settings: ConvertSettings,
    recipe: Recipe,
    checkpoint: Checkpoint | HubCheckpoint,
    importance: ImportanceMatrix | None,
    statistics: Statistics | None,
) -> _Work:
    network = describe(checkpoint.config)
    if settings.fold_rotation:
        network = fold_rotation(network)
    plan = make_plan(network, checkpoint.tensors, recipe)
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.config, network.vocab_rows)
    return _Work(
        settings, checkpoint, network, recipe, plan, vocabulary, ClassTable(plan),
        weight_notes(plan, importance, statistics), importance, statistics,
    )  # fmt: skip


def _write(work: _Work, header: bytes, target: Path, progress: Progress | None) -> tuple[str, ...]:
    """Write the file; returns notes on how it was made."""
    resumable = _RESUMABLE if work.hub else ()
    journal = ShardJournal(target)
    notes: list[str] = []
    with complete_file(target, keep_after=resumable) as handle:
        try:
            output = _begin(work, handle, header, journal, notes)
            _write_made(work, output)
            meter = _Meter(progress, 0)
            n_blocks = _write_shards(work, output, journal, meter)
            if work.settings.verify:
                notes.append(_verify(work, target, n_blocks))
        except resumable:
            raise
        except BaseException:
            journal.remove()
            raise
    journal.remove()
    return (*notes, *(work.statistics.troubles if work.statistics else ()))


def _begin(
    work: _Work, handle: int, header: bytes, journal: ShardJournal, notes: list[str]
) -> GgufOutput:
    """The output, new or as an interrupted run of the same conversion left it."""
    hub = work.hub
    if hub is not None:
        stale = journal.path.exists()
        state = journal.load(_fingerprint(work, hub, header))
        output = GgufOutput.begun(handle, header, work.plan)
        if state is not None and output is not None and work.table.restore(state):
            n_shards = sum(1 for _ in work.plan.by_shard())
            notes.append(f"resume: {len(journal.done)} of {n_shards} shards were written before")
            return output
        if stale:
            notes.append(
                "resume: what an interrupted conversion left has other settings or another "
                "source, or is damaged; started over"
            )
    journal.forget()
    return GgufOutput(handle, header, work.plan)


def _write_made(work: _Work, output: GgufOutput) -> None:
    """Write the tensors that no checkpoint stores."""
    for tensor in work.plan.tensors:
        if tensor.rule.made is not None:
            values = tensor.rule.made.values(tensor.rule.shape)
            data, _ = quantize_rows(
                values.reshape(-1, values.shape[-1]), tensor.type,
                n_threads=work.settings.n_threads,
            )  # fmt: skip
            output.write(tensor, 0, data)


def _fingerprint(work: _Work, hub: HubCheckpoint, header: bytes) -> str:
    """A hash of all that decides the bytes: the header has source, commit, version and plan."""
    files = [(f.name, f.size, f.sha256 or f.blob) for f in hub.shards.values()]
    return fingerprint(
        header, files=files, type=work.recipe.name, llama=version("llama-cpp-python")
    )


def _write_shards(work: _Work, output: GgufOutput, journal: ShardJournal, meter: _Meter) -> int:
    """Write what the journal does not have yet; returns how many blocks were then compared."""
    n_blocks = 0
    shards = [(path, jobs, _n_bytes(jobs)) for path, jobs in work.plan.by_shard()]
    hub = work.hub
    meter.total = sum(n_bytes for _, _, n_bytes in shards)
    if hub is not None:
        _prepare_downloads(hub, [path.name for path, _, _ in shards], journal, meter)
    for path, planned, n_bytes in shards:
        if path.name in journal.done:
            meter.add(n_bytes)
            continue
        with work.checkpoint.open(path) as file:
            jobs = work.jobs(path, planned)
            meter.total += _n_bytes(jobs) - n_bytes
            with closing(ahead(_shard_blocks(work, file, jobs))) as blocks:
                held = 0
                for tensor, at, data, n_read, stats in blocks:
                    output.write(tensor, at, data)
                    work.table.add(tensor, stats)
                    meter.add(n_read)
                    held += n_read
                    if held >= _HELD_BYTES:
                        file.forget()
                        held = 0
            if work.settings.verify:
                n_blocks += _compare(work, output, file, jobs)
        if hub is not None:
            output.sync()
            journal.record(path.name, work.table.state())
            hub.drop(path.name)
    return n_blocks


def _shard_blocks(
    work: _Work, file: TensorFile, jobs: list[Job]
) -> Iterator[tuple[PlannedTensor, int, NDArray[np.uint8], int, QuantizeStats]]:
    """Every block of a shard: its tensor, the offset in it, and what ``_job_blocks`` yields."""
    for job in jobs:
        at = job.at
        for data, n_read, stats in _job_blocks(work, file, job):
            yield job.tensor, at, data, n_read, stats
            at += data.nbytes


def _n_bytes(jobs: list[Job]) -> int:
    return sum(job.part.n_bytes for job in jobs)


def _prepare_downloads(
    hub: HubCheckpoint, names: list[str], journal: ShardJournal, meter: _Meter
) -> None:
    """Count what is still to come; drop shards that a killed run left behind."""
    for name in names:
        if name in journal.done:
            hub.drop(name)
    coming = [name for name in names if name not in journal.done and not hub.is_local(name)]
    meter.total += sum(hub.shards[name].size for name in coming)
    hub.count = meter.add


def _compare(work: _Work, output: GgufOutput, file: TensorFile, jobs: list[Job]) -> int:
    """Compare the ends of every part with the open shard; returns the number of blocks."""
    n_blocks = 0
    for job in jobs:
        ends = _job_blocks(work, file, job, ends_only=True)
        size = job.tensor.type.row_bytes(math.prod(job.part.part.target_shape))
        n_blocks += verify_job(output, job, size, (data for data, _, _ in ends))
        file.forget()
    return n_blocks


def _verify(work: _Work, target: Path, n_blocks: int) -> str:
    """Check the whole file before it is renamed; returns a line on what was compared."""
    path = part_path(target)
    verify_header(path, work.plan)
    n_tokens = verify_logits(path, work.settings.n_threads)
    return (
        f"verify: {len(work.plan.tensors)} tensors as planned, {n_blocks} blocks equal to their "
        f"source's, {n_tokens} tokens computed with finite logits"
    )


def _header(work: _Work) -> bytes:
    return gguf_header(work.network.graph, _metadata(work), work.vocabulary, work.plan)


def _metadata(work: _Work) -> dict[str, MetadataValue]:
    """The file's metadata: the graph's keys, and the origin of the weights."""
    network = work.network
    return {
        "general.name": work.settings.name.encode("utf-8", "replace").decode(),
        "general.file_type": work.recipe.file_type,
        "general.quantization_version": 2,
        "inferos.version": infer_os.__version__,
        "inferos.source.architecture": network.architecture,
        CONFIG_KEY: config_text(work.checkpoint.config),
        **(hub_origin(work.hub) if work.hub else {}),
        **(weights_origin(work.importance) if work.importance else {}),
        **(statistics_origin(work.statistics) if work.statistics else {}),
        **adapters_origin(work.settings.adapters),
        **({ROTATION_KEY: ROTATION} if work.settings.fold_rotation else {}),
        **({GELU_KEY: ERF_GELU} if network.erf_gelu else {}),
        **(network.windows.metadata if network.windows else {}),
        **{f"{network.graph}.{key}": value for key, value in network.metadata.items()},
    }


def _holds(job: Job, stats: QuantizeStats) -> bool:
    """Whether a block's type can hold its values, without overflow of a scale."""
    if not (math.isfinite(stats.sum_squared_error) and math.isfinite(stats.max_abs_error)):
        return False
    lost = stats.sum_squared_error >= stats.sum_squared_value > 0
    return not (lost and job.tensor.type.quantized)


def _job_blocks(
    work: _Work, file: TensorFile, job: Job, *, ends_only: bool = False
) -> Iterator[tuple[NDArray[np.uint8], int, QuantizeStats]]:
    """Quantized blocks of one stored tensor; refuses values that are not finite."""
    name = job.part.stored.name
    matrix = work.importance
    array = open_eight_bit(file, name) if job.part.is_eight_bit else file.array(name)
    blocks = quantized_blocks(
        job.part.part,
        array,
        job.tensor.type,
        n_threads=work.settings.n_threads,
        importance=matrix.weights(job.tensor.rule.target) if matrix else None,
        feedback=work.statistics.feedback(job.tensor, work.settings.n_threads)
        if work.statistics
        else None,
        added=work.adapters.added(name, array) if work.adapters else None,
        ends_only=ends_only,
    )
    for data, n_bytes, stats in blocks:
        file.check()
        if stats.n_not_finite:
            raise SourceError(
                f"{file.path}: tensor {name!r} holds {stats.n_not_finite} values that are NaN or "
                f"infinite, or too large for {job.tensor.type.name}: the checkpoint is damaged, or "
                "needs f32 or bf16"
            )
        if not _holds(job, stats):
            raise SourceError(
                f"{file.path}: tensor {name!r} holds values that {job.tensor.type.name} cannot "
                "hold; choose f32 or bf16"
            )
        yield data, n_bytes, stats
