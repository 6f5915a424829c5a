"""``eval``: files of every wanted type, a reference, and the figures of each.

Goes in: what the command line asked for. Comes out: :class:`~.bench.BenchResult`. A folder is
converted to temporary files, one type at a time; whatever can be refused is refused before the
first measurement.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..convert.pipeline import convert
from ..convert.plain_file import read_start
from ..convert.settings import ConvertSettings
from ..convert.source import HubSource, ReadySource
from ..convert.types import recipe_named
from ..files import working_folder
from ..models.bundled import HELD_OUT, TARGET
from ..models.shape import ModelShape
from ..models.weight_types import RECIPES
from ..native.graph_check import read_model_header
from ..runtime.errors import BenchError, SettingsError
from ..runtime.plan.budget import own_budget
from ..runtime.plan.machine import read_cpu
from ..runtime.plan.memory_plan import check_plan
from ..runtime.plan.shapes import header_shape
from ..runtime.plan.use import plan_eval
from ..runtime.settings import EngineSettings, Extra
from ..store.fetch import model_file
from ..store.lora import fetch_adapters
from ..store.planning import find_shape
from ..store.resolve import find_source
from ..store.shelves import shelf_of
from ..store.wish import ModelWish
from .bench import BenchResult, Output
from .quality import (
    Candidate,
    QualitySettings,
    check_schedules,
    check_vocabularies,
    measure_quality,
    text_tokens,
)
from .rows import make_place, make_rows

DEFAULT_TYPES = ("q8_0", "q4_k_m", "q4_0")
#: A reference larger than this as F32 is made as F16.
_LARGEST_F32 = 8 << 30
_LARGEST_TEXT = 64 << 20
_REMEDIES = "choose smaller --types, a smaller --reference or --window, or raise --memory"


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to evaluate. Empty ``models`` means the bundled one; several must be files.

    An empty ``reference`` means a folder's own weights as F32, and no reference for a file.
    ``loras`` are adapters that are added to weights as they are converted, but not to those of a
    ``reference`` that is named. ``memory`` is the limit for everything in bytes, 0 for what is
    available; ``extras`` are for the plan.
    """

    models: tuple[str, ...]
    text: Path | None
    reference: str
    types: tuple[str, ...]
    kvs: tuple[str, ...]
    settings: QualitySettings
    memory: int = 0
    extras: frozenset[Extra] = frozenset((Extra.EVALUATION,))
    loras: tuple[str, ...] = ()


def parse_types(text: str) -> tuple[str, ...]:
    """``--types``: a list of types, or ``all``; empty for empty text.

    Raises:
        UnsupportedError: an unknown type.
    """
    if text.strip().lower() == "all":
        return tuple(RECIPES)
    found = [part.strip().lower() for part in text.split(",") if part.strip()]
    for kind in found:
        recipe_named(kind)
    return tuple(dict.fromkeys(found))


def run_eval(request: EvalRequest, command: str, output: Output) -> BenchResult:
    """Evaluate every file with every cache.

    Raises:
        BenchError: the text cannot be read, or the reference has another vocabulary.
        EvaluateError: the text is too short.
        SettingsError: a cache that the model cannot have, or options that do not go together.
        MemoryShortage: a file and the reference do not fit; nothing was converted or loaded.
        Whatever converting and loading raise.
    """
    text = _text(request)
    request = _with_ready_files(request, output)
    sources = [_source(name) for name in request.models] or [TARGET]
    _check_types(request, sources)
    _check_memory(request, sources)
    with working_folder(Path(tempfile.gettempdir(), "infer-os-eval")) as folder:
        reference, notes = _reference(request, sources, folder, output)
        found = []
        for candidate in _candidates(request, sources, folder, output):
            header = read_model_header(candidate.path)
            schedules, said = check_schedules(header, request.kvs, request.settings.window)
            notes = tuple(dict.fromkeys((*notes, *said)))
            if reference is not None:
                check_vocabularies(reference, candidate.path)
            tokens = text_tokens(candidate.path, text, request.settings)
            found += measure_quality(
                candidate, reference, schedules, tokens, request.settings, output.steps
            )
    engine = EngineSettings(threads=request.settings.threads)
    place_of_run = make_place(command, read_cpu().model, engine.n_threads)
    model = " ".join(Path(name).name for name in request.models) or TARGET.name
    return BenchResult(tuple(make_rows(found, model)), place_of_run, notes)


def _with_ready_files(request: EvalRequest, output: Output) -> EvalRequest:
    """The request with the local file in place of every ready file on the hub."""
    settings = EngineSettings(threads=request.settings.threads)

    def local(name: str) -> str:
        if not isinstance(find_source(name), ReadySource):
            return name
        return str(model_file(ModelWish(name), settings, output.report))

    return replace(
        request,
        models=tuple(local(name) for name in request.models),
        reference=request.reference and local(request.reference),
    )


def _source(name: str) -> Path | HubSource:
    source = find_source(name)
    assert not isinstance(source, ReadySource)
    return source


def _text(request: EvalRequest) -> str:
    path = request.text
    if path is None:
        bundled = all(Path(name).resolve() == TARGET for name in request.models)
        if not bundled:
            raise BenchError(
                "--text FILE is needed: a text that the model has not seen; only the bundled model "
                "comes with one"
            )
        path = HELD_OUT
    try:
        return read_start(path, _LARGEST_TEXT).decode("utf-8", "replace")
    except OSError as error:
        raise BenchError(f"--text {path}: cannot be read: {error.strerror}") from error


def _is_file(source: Path | HubSource) -> bool:
    return isinstance(source, Path) and not source.is_dir()


def _full_name(source: Path | HubSource) -> str:
    """A model's name with its revision."""
    if isinstance(source, Path):
        return str(source)
    return f"{source.repository}@{source.revision}"


def _check_types(request: EvalRequest, sources: list[Path | HubSource]) -> None:
    files = [source for source in sources if _is_file(source)]
    if request.loras and files:
        raise SettingsError(
            f"--lora: {files[0]} is a GGUF file; adapters are added to weights when they are "
            "converted"
        )
    if request.types and files:
        raise SettingsError(f"--types: {files[0]} is a GGUF file and keeps its type; drop --types")
    if len(sources) > 1 and any(isinstance(s, Path) and not _is_file(s) for s in sources):
        raise SettingsError(
            "several MODELs must be GGUF files or models on the hub; evaluate a folder alone"
        )
    if len(set(map(_full_name, sources))) != len(sources):
        raise SettingsError("a MODEL is named twice")
    names = [source.name for source in files if isinstance(source, Path)]
    if len(set(names)) != len(names):
        raise SettingsError(
            "two MODELs have the same file name; their rows could not be distinguished"
        )


def _check_memory(request: EvalRequest, sources: list[Path | HubSource]) -> None:
    """Check, before anything is converted, that each file fits next to the reference.

    Raises:
        MemoryShortage: one does not.
        SettingsError: a cache that the model cannot have.
    """
    names = request.models or (str(TARGET),)
    budget = own_budget(request.memory)
    compared = _reference_shape(request, names[0], sources[0])
    converts = any(not _is_file(source) for source in sources)
    extras = request.extras | ({Extra.CONVERSION} if converts else set())
    for name, source in zip(names, sources, strict=True):
        kinds = ("",) if _is_file(source) else request.types or DEFAULT_TYPES
        for kind in kinds:
            shape = _shape(name, source, kind)
            for kv in request.kvs:
                settings = EngineSettings(
                    request.settings.window, threads=request.settings.threads, kv=kv, extras=extras
                )
                check_plan(plan_eval(shape, compared, settings, budget), _REMEDIES)


def _reference_shape(
    request: EvalRequest, name: str, source: Path | HubSource
) -> ModelShape | None:
    if request.reference:
        name, source = request.reference, _source(request.reference)
    elif not isinstance(source, Path) or _is_file(source):
        return None
    if not isinstance(source, Path):
        return _shape(name, source, "f16")
    if _is_file(source):
        return _shape(name, source, "")
    exact = _shape(name, source, "f32")
    return exact if exact.options[0].n_bytes <= _LARGEST_F32 else _shape(name, source, "f16")


def _shape(name: str, source: Path | HubSource, kind: str) -> ModelShape:
    """The shape of a file, or of a conversion to that type."""
    if isinstance(source, HubSource) and (made := shelf_of(source).file(kind)).exists():
        return header_shape(read_model_header(made))
    shape = find_shape(name)
    return shape if shape.is_file else replace(shape, options=(shape.option(kind),))


def _reference(
    request: EvalRequest, sources: list[Path | HubSource], folder: Path, output: Output
) -> tuple[Path | None, tuple[str, ...]]:
    source = _source(request.reference) if request.reference else sources[0]
    if isinstance(source, HubSource):
        if not request.reference:
            return None, ("without --reference there is no KL divergence",)
        settings = EngineSettings(threads=request.settings.threads)
        wish = ModelWish(request.reference, "f16")
        return model_file(wish, settings, output.report), ("the reference is F16",)
    if not source.is_dir():
        if not request.reference:
            return None, ("without --reference there is no KL divergence",)
        read_model_header(source)
        return source, ()
    target = folder / "reference.gguf"
    adapters = () if request.reference else fetch_adapters(request.loras, output.report)
    exact = ConvertSettings(source, target, "f32", adapters=adapters)
    kind = "f32" if convert(replace(exact, dry_run=True)).n_bytes <= _LARGEST_F32 else "f16"
    convert(replace(exact, type=kind), output.steps(f"reference as {kind}"))
    return target, (
        f"the reference is {source.resolve().name} as {kind.upper()} with an F16 cache",
    )


def _candidates(
    request: EvalRequest, sources: list[Path | HubSource], folder: Path, output: Output
) -> Iterator[Candidate]:
    """The files; one made for this is removed before the next."""
    for source in sources:
        if isinstance(source, Path) and not source.is_dir():
            yield Candidate(source.name, source)
            continue
        for kind in request.types or DEFAULT_TYPES:
            if isinstance(source, HubSource):
                settings = EngineSettings(threads=request.settings.threads)
                # the revision, too: a model's name alone may mean another one
                wish = ModelWish(_full_name(source), kind, request.loras)
                label = f"{source.name}@{source.revision} {kind}" if len(sources) > 1 else kind
                yield Candidate(label, model_file(wish, settings, output.report))
                continue
            target = folder / f"{kind}.gguf"
            adapters = fetch_adapters(request.loras, output.report)
            made = ConvertSettings(source, target, kind, adapters=adapters)
            convert(made, output.steps(f"converting to {kind}"))
            yield Candidate(kind, target)
            target.unlink()
