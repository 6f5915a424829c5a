"""``bench``: find or make the files, load engines, measure, and gather the rows.

Goes in: what the command line asked for. Comes out: :class:`BenchResult`. Whatever can be
refused is refused before the first measurement.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache import cache_folder
from ..convert.pipeline import convert
from ..convert.settings import ConvertSettings
from ..convert.source import HubSource, ReadySource
from ..files import working_folder
from ..models.bundled import DRAFT, HELD_OUT, TARGET
from ..native.backend import exact_context, kernel_status
from ..native.gguf_file import GgufHeader
from ..native.graph_check import read_model_header
from ..native.residency import peak_rss_bytes
from ..runtime.errors import BenchError
from ..runtime.interface import Engine
from ..runtime.plan.bandwidth import is_known, known_bandwidth, probe_bytes
from ..runtime.plan.budget import own_budget
from ..runtime.plan.machine import read_cpu, read_memory
from ..runtime.plan.memory_plan import check_plan
from ..runtime.plan.shapes import header_shape
from ..runtime.plan.use import Use, plan_bench
from ..runtime.prepare import choose_context
from ..runtime.settings import EngineSettings
from ..store.fetch import model_file
from ..store.reporter import Reporter
from ..store.resolve import find_source
from ..store.shelves import DEFAULT_TYPE
from ..store.wish import ModelWish
from .arms import ArmResult, ArmTask, run_in_turns
from .energy import find_zones
from .projection import Projection, project
from .rows import Measurement, Place, Row, make_place, make_rows
from .settings import BATCHES, BenchSettings, check_batches, fitting_depths
from .speed import bandwidth_shares, bench_tokens, measure_depths, measure_growth, measure_memory
from .techniques import BASELINE, TechniqueFiles, make_arms, technique_rows
from .throughput import batch_sizes, measure_batches, sequence_tokens

#: Called with the name of a step that begins; returns the callback for its progress.
Steps = Callable[[str], Callable[[int, int], None] | None]
#: Like ``commands.loading.load_engine``: returns an engine and the seconds it took to load.
Load = Callable[[ModelWish, EngineSettings], tuple[Engine, float]]

#: How a file of random weights is marked (``benchmarks/random_gguf.py``).
RANDOM_KEY = "inferos.weights.random"
#: Characters between the texts of two rounds.
_STRIDE = 3000


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure. ``wish`` None is the bundled model; ``kvs`` are caches to compare.

    ``baseline`` is a file of FP16 weights, needed if MODEL is a file of quantized ones.
    """

    wish: ModelWish | None
    settings: EngineSettings
    bench: BenchSettings
    kvs: tuple[str, ...] = ()
    baseline: Path | None = None
    bundled_type: str = "q8_0"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Rows, where they were measured, and notes on what could not be measured."""

    rows: tuple[Row, ...]
    place: Place
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """Where a run reports what it does."""

    report: Reporter
    steps: Steps


def _place(command: str, settings: EngineSettings) -> Place:
    return make_place(command, read_cpu().model, settings.n_threads)


def _bandwidth() -> float:
    return known_bandwidth(cache_folder(), read_cpu(), read_memory()).all_cores


@contextmanager
def _temporary() -> Iterator[Path]:
    with working_folder(Path(tempfile.gettempdir(), "infer-os-bench")) as folder:
        yield folder


def _made(source: Path, kind: str, folder: Path) -> Path:
    """A temporary conversion."""
    target = folder / f"{source.resolve().name}-{kind}.gguf"
    if not target.exists():
        convert(ConvertSettings(source, target, kind))
    return target


# ---- speed


def bench_speed(request: BenchRequest, command: str, load: Load, output: Output) -> BenchResult:
    """Load, first token, prefill and decode over depth, sequences, memory.

    Raises:
        SettingsError: depths or sequences that are too long for the model.
        Whatever loading raises.
    """
    with _temporary() as folder, ExitStack() as stack:
        wish = request.wish or ModelWish(str(_made(TARGET, request.bundled_type, folder)))
        batches = request.bench.batches or BATCHES
        wish, settings = planned_files(request, wish, batches, output.report)
        request = replace(request, settings=settings)
        bandwidth = _bandwidth()  # needs memory of its own
        engines, loads = _load_engines(request, wish, load, stack)
        first = next(iter(engines.values()))
        n_ctx = min(engine.n_ctx for engine in engines.values())
        depths, notes = fitting_depths(request.bench, n_ctx)
        path = first.info.path
        n_decode = request.bench.n_decode
        check_batches(batches, _trained(path, request.settings.native), sequence_tokens(n_decode))
        zones, missing = find_zones()
        tokens = bench_tokens(
            first, HELD_OUT.read_text("utf-8"), depths[-1] + request.bench.n_measured + 1
        )
        found = [*loads]
        decoded = measure_depths(
            engines, tokens, depths, request.bench, zones, output.steps("decode over depth")
        )
        found += [*decoded, *bandwidth_shares(engines, decoded, bandwidth)]
        for name, engine in engines.items():
            found += measure_growth(engine, name, tokens)
        found += measure_memory(first, peak_rss_bytes())
        stack.pop_all().close()  # a second load needs their memory
        found += measure_batches(
            path, request.settings, batches, n_decode, request.bench.repeats,
            output.steps("sequences"),
        )  # fmt: skip
    if missing:
        notes = (*notes, f"energy is left out: {missing}")
    rows = make_rows(found, path.name)
    return BenchResult(tuple(rows), _place(command, request.settings), notes)


def planned_files(
    request: BenchRequest, wish: ModelWish, batches: Sequence[int], report: Reporter
) -> tuple[ModelWish, EngineSettings]:
    """The model's file, made if need be, and settings with the draft's file; checks that all fits.

    Raises:
        MemoryShortage: engines of all caches, or the sequences after them, do not fit.
        As :func:`..store.opening.find_files`.
    """
    from ..store.opening import find_files

    path, settings = find_files(wish, request.settings, report)
    named = settings.draft not in ("none", "lookup")
    draft = header_shape(read_model_header(Path(settings.draft))) if named else None
    budget = own_budget(settings.memory, native=settings.native)
    sizes = [batch_sizes(n, request.bench.n_decode, settings.n_threads) for n in batches]
    shape = header_shape(read_model_header(path))
    plan = plan_bench(shape, Use(settings, draft=draft), request.kvs, sizes, budget)
    cpu, memory = read_cpu(), read_memory()
    if not is_known(cache_folder(), cpu, memory):  # it is measured before the model is loaded
        passing = max(plan.beside.passing, probe_bytes(memory))
        plan = replace(plan, beside=replace(plan.beside, passing=passing))
    check_plan(plan)
    return ModelWish(str(path)), settings


def _trained(path: Path, native: bool) -> int:
    return exact_context(kernel_status(native), read_model_header(path)) if path.exists() else 0


def _load_engines(
    request: BenchRequest, wish: ModelWish, load: Load, stack: ExitStack
) -> tuple[dict[str, Engine], list[Measurement]]:
    """An engine per cache, and how long the first took to load, measured repeatedly."""
    settings = request.settings
    kvs = request.kvs or (settings.kv or "f16",)
    loads: list[Measurement] = []
    one = replace(settings, kv=kvs[0])
    engine, _ = load(wish, one)  # the first may convert, and reads the file
    try:
        fitting_depths(request.bench, engine.n_ctx)
        for _ in range(request.bench.repeats):
            engine.close()
            engine, seconds = load(wish, one)
            loads.append(Measurement("load", "s", seconds, (("load", settings.load),)))
    finally:
        stack.callback(engine.close)
    engines = {kvs[0]: engine}
    for kv in kvs[1:]:
        engines[kv], _ = load(wish, replace(settings, kv=kv))
        stack.callback(engines[kv].close)
    return engines, loads


# ---- techniques


@dataclass(frozen=True, slots=True)
class _Model:
    """The files of a model for the techniques, and why it has no draft ("" if it has one)."""

    files: TechniqueFiles
    name: str
    no_draft: str = ""


def bench_techniques(request: BenchRequest, command: str, output: Output) -> BenchResult:
    """Each technique alone and all together against the baseline, measured alternately.

    Raises:
        SettingsError: a depth that does not fit the context.
        BenchError: no FP16 weights to compare with.
        Whatever converting and loading raise.
    """
    bench = request.bench
    with _temporary() as folder:
        model = _technique_files(request, folder, output.report)
        header = read_model_header(model.files.baseline)
        n_ctx, _ = choose_context(header, request.settings.context, native=request.settings.native)
        n_prompt = _prompt_tokens(bench, n_ctx)
        settings = replace(request.settings, context=n_ctx)
        tasks = _tasks(bench, n_prompt)
        arms = make_arms(model.files, settings, n_prompt)
        results = run_in_turns(arms, tasks, output.steps("techniques"))
        projected: Projection | None = None
        notes: tuple[str, ...] = ()
        if model.no_draft:
            projected, notes = _projection(results, bench, settings, model.no_draft, folder, output)
    rows = technique_rows(results, model.name, _bandwidth(), projected)
    where = (
        f"techniques: {n_prompt} prompt tokens, then {bench.n_decode} drawn one by one at "
        "temperature 0.8, each technique in a process of its own"
    )
    quantized = model.files.quantized
    if quantized is None:
        without = "all together does not include quantized weights: a GGUF file keeps its type"
        notes = (*notes, without)
    return BenchResult(tuple(rows), _place(command, settings), (where, *notes))


def _prompt_tokens(bench: BenchSettings, n_ctx: int) -> int:
    """The prompt's length: the deepest depth; by default 1024 or what fits."""
    if bench.depths:
        return max(2, fitting_depths(bench, n_ctx)[0][-1])
    fitted, _ = fitting_depths(bench, n_ctx)
    return max(2, min(1024, fitted[-1]))


def _tasks(bench: BenchSettings, n_prompt: int) -> list[ArmTask]:
    """One text per round; one more for the round that warms up."""
    text = HELD_OUT.read_text("utf-8")
    # a token has at least one byte, and each round's text begins at a different place
    length = 12 * n_prompt
    starts = [i * _STRIDE % max(1, len(text) - length) for i in range(bench.repeats + 1)]
    return [ArmTask(text[at : at + length], n_prompt, bench.n_decode) for at in starts]


def _technique_files(request: BenchRequest, folder: Path, report: Reporter) -> _Model:
    wish = request.wish
    if wish is None:
        if request.settings.draft not in ("none", "auto"):
            raise BenchError(
                f"--draft {request.settings.draft}: without MODEL, the bundled pair runs"
            )
        files = TechniqueFiles(
            _made(TARGET, "f16", folder),
            _made(TARGET, request.bundled_type, folder),
            _made(DRAFT, request.bundled_type, folder),
        )
        return _Model(files, TARGET.name)
    source = find_source(wish.text)
    settings = replace(request.settings, draft="none")
    if isinstance(source, ReadySource):
        source = model_file(wish, settings, report)
    if isinstance(source, Path) and source.is_dir():
        kind = wish.type or DEFAULT_TYPE
        files = TechniqueFiles(_made(source, "f16", folder), _made(source, kind, folder))
    elif isinstance(source, HubSource):
        kind = wish.type or DEFAULT_TYPE
        files = TechniqueFiles(
            model_file(ModelWish(wish.text, "f16"), settings, report),
            model_file(ModelWish(wish.text, kind), settings, report),
        )
    else:
        files = _file_and_baseline(source, request.baseline)
    return _with_draft(files, wish, request.settings, report)


def _file_and_baseline(path: Path, baseline: Path | None) -> TechniqueFiles:
    header = read_model_header(path)
    if baseline is None:
        return TechniqueFiles(path)
    other = read_model_header(baseline)
    if _widths(header) != _widths(other):
        raise BenchError(
            f"--baseline {baseline}: the shapes of its tensors differ from those of {path}: "
            "it is not a file of the same model"
        )
    return TechniqueFiles(baseline, path)


def _widths(header: GgufHeader) -> Mapping[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.shape) for tensor in header.tensors}


def _with_draft(
    files: TechniqueFiles, wish: ModelWish, settings: EngineSettings, report: Reporter
) -> _Model:
    """Find the draft that ``--draft`` names, or the catalog's."""
    from ..store.opening import draft_file

    header = read_model_header(files.baseline)
    name = wish.name
    if header.metadata.get(RANDOM_KEY):
        return _Model(files, name, "random weights: the acceptance of a draft would mean nothing")
    asked = "auto" if settings.draft == "none" else settings.draft
    found, _ = draft_file(replace(settings, draft=asked), wish, files.baseline, report)
    if found in ("none", "lookup"):
        return _Model(files, name, "no draft is known for this model")
    return _Model(replace(files, draft=Path(found)), name)


def _projection(
    results: Mapping[str, Sequence[ArmResult]],
    bench: BenchSettings,
    settings: EngineSettings,
    why: str,
    folder: Path,
    output: Output,
) -> tuple[Projection | None, tuple[str, ...]]:
    """Run the bundled pair for its acceptance, and project it on this model's costs."""
    pair = TechniqueFiles(_made(TARGET, "f16", folder), None, _made(DRAFT, "q8_0", folder))
    small = replace(bench, repeats=max(2, bench.repeats), n_decode=max(96, bench.n_decode))
    arms = make_arms(pair, replace(settings, context=1024, memory=0), 256)
    arms = [arm for arm in arms if arm.name in (BASELINE, "speculative")]
    ran = run_in_turns(arms, _tasks(small, 256), output.steps("the bundled pair"))
    steps = dict(results["zero-copy"][-1].steps)
    found = project(steps, ran["speculative"], "the bundled pair", why)
    if found is None:
        return None, (f"speculative decoding is left out: {why}, and the bundled pair never paid",)
    return found, ()
