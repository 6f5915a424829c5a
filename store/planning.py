"""What the commands ``plan`` and ``system`` do: a model's sizes and the machine's, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache import cache_folder
from ..convert.checkpoint import refuse_quantized
from ..convert.errors import SourceError
from ..convert.ggml_checkpoint import local_config
from ..convert.ggml_file import is_ggml
from ..convert.hub import is_offline, list_repository, read_start
from ..convert.hub_checkpoint import ready_hint
from ..convert.plain_file import parse_object
from ..convert.source import HubSource, ReadySource
from ..convert.weight_options import weight_options
from ..models.architectures import describe
from ..models.catalog import CatalogModel, find_model
from ..models.shape import ModelShape, network_shape
from ..native.backend import KernelStatus, kernel_status, taken_types
from ..native.gguf_file import GgufHeader
from ..native.graph_check import read_model_header
from ..native.layouts import Layouts, llama_layouts
from ..runtime.errors import SettingsError
from ..runtime.plan.bandwidth import Bandwidth, known_bandwidth, measured_now
from ..runtime.plan.budget import own_budget, some_budget
from ..runtime.plan.choice import Wish, advise, choose, type_table
from ..runtime.plan.machine import (
    Cpu,
    Disk,
    Extensions,
    Memory,
    read_cpu,
    read_disk,
    read_extensions,
    read_memory,
)
from ..runtime.plan.memory_plan import Budget, MemoryShortage, Plan
from ..runtime.plan.shapes import header_shape
from ..runtime.plan.use import Use, make_planner
from ..runtime.settings import EngineSettings, Extra
from ..sizes import size_text
from .lora import check_adapters
from .ready_files import (
    AUTO,
    ReadyModel,
    cached_ready,
    find_ready,
    ready_models,
    remote_header,
)
from .resolve import find_source, first_work, naming_near
from .wish import ModelWish

_LARGEST_CONFIG = 1 << 20
_MOST_PARALLEL = 256
#: Bits per weight from which on a ready file counts as unquantized: F16 has 16, Q8_0 8.5.
_LEAST_UNQUANTIZED = 12
#: One text at a time, with the finest cache that fits.
_ANY_CACHE = EngineSettings(kv="auto")
#: The models of the ranking, the largest first.
RANKED = (
    "gpt-neox-20b", "bloom-7b1", "gpt-j-6B", "DialoGPT-large", "gpt2-large", "gpt2-medium",
    "distilgpt2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What ``plan`` was asked: an empty ``load`` and a ``type`` of None are to be chosen.

    ``parallel`` is that of a batch; None is one text at a time. ``loras`` are added to the weights,
    which changes no size, but such a model may be still to convert.
    """

    model: str
    engine: EngineSettings
    load: str = ""
    type: str | None = None
    draft: str = "none"
    parallel: int | None = None
    loras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.parallel is not None and not 1 <= self.parallel <= _MOST_PARALLEL:
            raise SettingsError(f"--parallel {self.parallel}: expected 1 to {_MOST_PARALLEL}")


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """The chosen plan, the same for every type, and notes for the user."""

    plan: Plan
    types: tuple[Plan, ...]
    draft: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankedModel:
    """A known model on this machine: its best plan, and every type that fits.

    ``advised`` is the plan to run, if there is one; see :func:`~..runtime.plan.choice.advise`.
    """

    model: CatalogModel
    plan: Plan
    fitting: tuple[str, ...]
    advised: Plan | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to run on this machine; ``fast`` says that it can reach the floor of speed."""

    model: CatalogModel
    plan: Plan
    fast: bool


@dataclass(frozen=True, slots=True)
class SystemReport:
    """Everything that ``system`` says.

    ``own_types``: models whose matrices are all of these types are computed by our kernels from end
    to end, if their heads and caches are taken too.
    """

    memory: Memory
    cpu: Cpu
    extensions: Extensions
    kernels: KernelStatus
    own_types: frozenset[str]
    layouts: Layouts
    bandwidth: Bandwidth
    disk: Disk
    ranking: tuple[RankedModel, ...]

    @property
    def recommended(self) -> Recommendation | None:
        """See :func:`recommend`."""
        return recommend(self.ranking)


def recommend(ranking: Sequence[RankedModel]) -> Recommendation | None:
    """The largest model that leaves memory to others and is fast enough; None if none fits.

    If there is no such model, it is the fastest that fits.
    """
    for ranked in ranking:
        if ranked.advised is not None:
            return Recommendation(ranked.model, ranked.advised, True)
    fitting = [ranked for ranked in ranking if ranked.plan.fits]
    if not fitting:
        return None
    best = max(fitting, key=lambda ranked: ranked.plan.tokens_per_s or 0.0)
    return Recommendation(best.model, best.plan, False)


def make_answer(request: PlanRequest, *, rates: bool = True) -> PlanAnswer:
    """Plan a model; reads headers and configs only, and downloads no more than a config.

    Without ``rates`` this process will carry the plan out: the machine's bandwidth is not measured,
    and no plan has a speed.

    Raises:
        SourceError: no such model; names similar ones.
        SettingsError: options that do not go together or do not suit the model.
        UnsupportedError: an adapter's scale that cannot be one.
        SourceError, FileFormatError: an adapter that does not fit, if it is on this machine.
    """
    source = find_source(request.model)
    if isinstance(source, ReadySource) or not (isinstance(source, HubSource) or source.is_dir()):
        ModelWish(request.model, loras=request.loras).refuse_loras(request.model)
    shape = source_shape(source, request.loras)
    if request.type is not None and all(o.type != request.type for o in shape.options):
        known = ", ".join(option.type for option in shape.options)
        raise SettingsError(f"--type {request.type}: {shape.name} can have {known}")
    memory, cpu = read_memory(), read_cpu()
    draft = _draft_shape(request.draft, request.model)
    work = first_work(request.model, request.type or "", request.loras)
    engine = replace(request.engine, draft=request.draft, extras=request.engine.extras | work)
    limit = engine.memory or memory.usable
    if rates:
        measured = known_bandwidth(cache_folder(), cpu, memory)
        budget = some_budget(limit, native=engine.native, rates=measured)
    else:
        budget = own_budget(limit, native=engine.native)
    planner, schedule, notes = make_planner(
        shape, Use(engine, request.parallel or 0, draft), budget
    )
    plan = choose(planner, Wish(request.type, schedule, request.load or None))
    return PlanAnswer(plan, type_table(planner, plan), draft.name if draft else None, notes)


def find_shape(text: str) -> ModelShape:
    """The sizes of a GGUF file, a checkpoint folder, a name of the catalog or a model on the hub.

    Raises:
        SourceError: no such model; names similar ones.
        GgufError, ConfigError: a file or a config that cannot be used.
    """
    return source_shape(find_source(text))


def source_shape(source: HubSource | ReadySource | Path, loras: Sequence[str] = ()) -> ModelShape:
    """:func:`find_shape` of what the words mean, with adapters that must fit."""
    if isinstance(source, ReadySource):
        return ready_shape(source, _ANY_CACHE)
    if isinstance(source, HubSource):
        return _config_shape(source.name, source.config or _hub_config(source), loras)
    if source.is_file() and not is_ggml(source):
        return header_shape(read_model_header(source))
    return _config_shape(source.resolve().name, local_config(source), loras)


def ready_shape(source: ReadySource, settings: EngineSettings) -> ModelShape:
    """The sizes of a ready file, from the cache or the first bytes of that on the hub.

    Raises:
        As :func:`choose_ready`.
    """
    cached = cached_ready(source)
    if cached is not None:
        return header_shape(read_model_header(cached))
    model, header = choose_ready(source, settings)
    return replace(header_shape(header), name=model.file_name)


def choose_ready(source: ReadySource, settings: EngineSettings) -> tuple[ReadyModel, GgufHeader]:
    """The file on the hub that is meant, and its checked header; nothing else is fetched.

    ``auto`` is the finest that fits when it is loaded with these settings, of those with quantized
    weights if there are such.

    Raises:
        SourceError, DownloadError: no such repository or file, or the hub does not answer.
        GgufError: not a model that can be used.
        MemoryShortage: for ``auto``, no file fits.
    """
    if source.wanted.lower() != AUTO:
        model = find_ready(source)
        return model, remote_header(model)
    unquantized: tuple[ReadyModel, GgufHeader] | None = None
    plan: Plan | None = None
    for model in ready_models(source):
        header = remote_header(model)
        plan = ready_plan(header, settings)
        if not plan.fits:
            continue
        if header.bits_per_weight < _LEAST_UNQUANTIZED:
            return model, header
        unquantized = unquantized or (model, header)
    if unquantized is not None:
        return unquantized
    assert plan is not None
    raise MemoryShortage(
        f"{source.text}: none of its files fits: the smallest needs "
        f"{size_text(plan.total, up=True)}, and {size_text(plan.limit)} may be used; nothing was "
        "downloaded", plan,
    )  # fmt: skip


def ready_plan(header: GgufHeader, settings: EngineSettings) -> Plan:
    """The plan of a model that is downloaded first, as these settings will load it."""
    engine = replace(settings, draft="none", extras=settings.extras | {Extra.DOWNLOAD})
    budget = own_budget(engine.memory, native=engine.native)
    planner, schedule, _ = make_planner(header_shape(header), Use(engine), budget)
    return choose(planner, Wish(None, schedule, engine.load))


def check_conversion(model: str, kind: str, settings: EngineSettings) -> None:
    """Check, before anything is downloaded, that a model of this type will fit when loaded.

    Raises:
        MemoryShortage: it will not; has the plan, and names the finest type that would fit.
        SourceError, ConfigError, UnreachableError: as :func:`find_shape`.
    """
    request = PlanRequest(model, settings, settings.load, kind.lower(), settings.draft)
    plan = make_answer(request, rates=False).plan
    if plan.fits:
        return
    free = make_answer(replace(request, type=None), rates=False).plan
    instead = f"--type {free.weights.type} would fit" if free.fits else "no type would fit"
    over = f"{size_text(plan.total, up=True)}, and {size_text(plan.limit)} may be used"
    raise MemoryShortage(
        f"{model}: as {kind} it needs {over}; {instead}; nothing was downloaded", plan
    )


def finest_type(source: HubSource | Path) -> str:
    """The finest type whose plan fits in this machine's memory, for ``convert --type auto``.

    Raises:
        MemoryShortage: not even the smallest fits.
        SourceError: no such model.
    """
    shape = source_shape(source)
    memory, cpu = read_memory(), read_cpu()
    bandwidth = known_bandwidth(cache_folder(), cpu, memory)
    budget = some_budget(memory.usable, rates=bandwidth)
    planner, _, _ = make_planner(shape, Use(_ANY_CACHE), budget)
    plan = choose(planner, Wish())
    if not plan.fits:
        name = source.repository if isinstance(source, HubSource) else source
        raise MemoryShortage(
            f"{name}: no type fits in this machine's {size_text(plan.limit)}; "
            f"see infer-os plan {name}"
        )
    return plan.weights.type


def _config_shape(name: str, config: Mapping[str, object], loras: Sequence[str] = ()) -> ModelShape:
    network = describe(config)
    if loras:
        check_adapters(loras, network)
    return network_shape(name, network, weight_options(network))


def _hub_config(source: HubSource) -> dict[str, object]:
    """The config of a model on the hub; nothing else is fetched."""
    if is_offline():
        raise SourceError(
            f"{source.repository}: HF_HUB_OFFLINE is set, and its config.json is on the hub; "
            "unset it"
        )
    with naming_near():
        repository = list_repository(source)
    file = repository.files.get("config.json")
    if file is None or file.size > _LARGEST_CONFIG:
        raise SourceError(
            f"{source.repository}: not a checkpoint: it has no config.json{ready_hint(repository)}"
        )
    data = read_start(repository, file, file.size)
    config = parse_object(f"{source.repository}/config.json", data)
    refuse_quantized(source.repository, config)
    return config


def _draft_shape(draft: str, target: str) -> ModelShape | None:
    if draft in ("none", "lookup"):  # lookup needs no second model
        return None
    if draft == "auto":
        known = find_model(target)
        return find_shape(known.draft) if known and known.draft else None
    return find_shape(draft)


def make_report() -> SystemReport:
    """Look at the machine, measure its bandwidth again, and rank the known models on it."""
    memory, cpu = read_memory(), read_cpu()
    bandwidth = measured_now(cache_folder(), cpu, memory)
    extensions = read_extensions()
    kernels = kernel_status(True)
    budget = some_budget(memory.usable, rates=bandwidth)
    return SystemReport(
        memory=memory,
        cpu=cpu,
        extensions=extensions,
        kernels=kernels,
        own_types=taken_types(kernels),
        layouts=llama_layouts(),
        bandwidth=bandwidth,
        disk=read_disk(cache_folder()),
        ranking=tuple(rank(budget)),
    )


def rank(budget: Budget) -> list[RankedModel]:
    """The best plan of each known model, the largest model first."""
    ranking = []
    for name in RANKED:
        model = find_model(name)
        if model is None:
            raise SourceError(f"{name}: not in the catalog")
        shape = _config_shape(model.name, model.config)
        settings = replace(_ANY_CACHE, extras=first_work(model.id))
        planner, _, _ = make_planner(shape, Use(settings), budget)
        plan = choose(planner, Wish())
        fitting = tuple(p.weights.type for p in type_table(planner, plan) if p.fits)
        ranking.append(RankedModel(model, plan, fitting, advise(planner)))
    return ranking
