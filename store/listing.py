"""What the command ``models`` shows: the catalog, what each model needs, what is cached."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.adapters import ADAPTERS_KEY
from ..convert.errors import SourceError
from ..convert.weight_options import weight_options
from ..models.architectures import architecture_of, describe
from ..models.catalog import CATALOG, CatalogModel, find_model
from ..models.shape import ModelShape, network_shape
from ..native.errors import GgufError
from ..native.gguf_file import GgufHeader, read_gguf_header
from ..native.processors import usable_cores
from ..runtime.plan.budget import some_budget
from ..runtime.plan.choice import CHOSEN_TYPES
from ..runtime.plan.memory_plan import Budget, Plan
from ..runtime.plan.use import Use, plan_use
from ..runtime.settings import EngineSettings
from .removal import CachedModel, cached_models, find_cached
from .resolve import first_work, near
from .shelves import LORA_MARK


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of the catalog on this machine: ``plans`` by type, as ``run`` would load it."""

    model: CatalogModel
    shape: ModelShape
    n_params: int
    plans: tuple[Plan, ...]
    cached: CachedModel | None

    @property
    def fits(self) -> str | None:
        """The finest type that fits in memory; None if none does."""
        fitting = (p.weights.type for p in self.plans if p.fits and p.weights.type in CHOSEN_TYPES)
        return next(fitting, None)

    def memory(self, kind: str) -> int:
        """Bytes of memory that it takes in a type, at most."""
        return next(plan.total for plan in self.plans if plan.weights.type == kind)


@dataclass(frozen=True, slots=True)
class ModelList:
    """The catalog and the cache, or what was searched for.

    ``limit`` is the memory that may be used now, ``cache_bytes`` the size of the whole cache.
    """

    catalog: tuple[ListedModel, ...]
    cached: tuple[CachedModel, ...]
    limit: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class CachedDetails:
    """A conversion in the cache; ``header`` is None, and ``damage`` says why, if it is damaged.

    ``n_bytes`` is its size on the disk, ``converted`` when it was made, in seconds since the
    epoch.
    """

    type: str
    path: str
    n_bytes: int
    header: GgufHeader | None
    damage: str = ""
    converted: float = 0.0

    @property
    def commit(self) -> str | None:
        """The hub commit that it was made from."""
        return self._text("inferos.source.revision")

    @property
    def architecture(self) -> str | None:
        """The architecture of the checkpoint."""
        return self._text("inferos.source.architecture")

    @property
    def n_params(self) -> int | None:
        """Weights and biases in the file."""
        return self.header.n_params if self.header else None

    @property
    def plain_type(self) -> str:
        """The type of its weights, without what marks added adapters."""
        return self.type.partition(LORA_MARK)[0]

    @property
    def loras(self) -> tuple[str, ...]:
        """The adapters that were added to its weights, as the user named them."""
        return tuple(shlex.split(self._text(ADAPTERS_KEY) or ""))

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of tensor data per weight."""
        return self.header.bits_per_weight if self.header else None

    @property
    def context(self) -> int | None:
        """Tokens that the model was trained for."""
        if self.header is None:
            return None
        value = self.header.metadata.get(f"{self.header.architecture}.context_length")
        return value if isinstance(value, int) else None

    def _text(self, key: str) -> str | None:
        value: Any = self.header.metadata.get(key) if self.header else None
        return str(value) if value is not None else None


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """Everything known about a model, from the catalog and the cache."""

    title: str
    listed: ListedModel | None
    cached: CachedModel | None
    files: tuple[CachedDetails, ...]


def list_models(search: str = "") -> ModelList:
    """The catalog with its needs, and what is in the cache. The hub is not asked.

    Args:
        search: words that a model's hub id, class, family or style must have, each in any case.

    Raises:
        SourceError: no model of the catalog or of the cache has them.
    """
    words = search.lower().split()
    known = [model for model in CATALOG if _has_words(_described(model), words)]
    everything = cached_models()
    by_title = {model.title: model for model in everything}
    ids = {model.id for model in known}
    cached = [m for m in everything if m.title in ids or _has_words(m.title, words)]
    if words and not known and not cached:
        raise SourceError(
            f"--search {search!r}: no model of the catalog or of the cache; infer-os models lists "
            f"them{near(search)}"
        )
    budget = some_budget()
    catalog = tuple(_listed(model, budget, by_title.get(model.id)) for model in known)
    n_bytes = sum(model.n_bytes for model in everything)
    return ModelList(catalog, tuple(cached), budget.limit, n_bytes)


def _described(model: CatalogModel) -> str:
    """What a model is searched by."""
    family = architecture_of(model.config).family
    return " ".join((model.id, *model.aliases, model.architecture, family, model.style))


def _has_words(text: str, words: list[str]) -> bool:
    return all(word in text.lower() for word in words)


def show_model(text: str) -> ModelDetails:
    """Everything about one model of the catalog or of the cache.

    Raises:
        SourceError: it is in neither; names similar ones.
    """
    known = find_model(text)
    try:
        cached = find_cached(text)
    except SourceError:
        if known is None:
            raise SourceError(
                f"{text}: neither in the catalog nor in the cache{near(text)}"
            ) from None
        cached = None
    listed = None
    if known is not None:
        listed = _listed(known, some_budget(), cached)
    files = (
        tuple(_details(file.type, file.path, file.n_bytes) for file in cached.files)
        if cached
        else ()
    )
    title = known.id if known else cached.title if cached else text
    return ModelDetails(title, listed, cached, files)


def _listed(model: CatalogModel, budget: Budget, cached: CachedModel | None) -> ListedModel:
    network = describe(model.config)
    shape = network_shape(model.name, network, weight_options(network))
    n_threads = usable_cores()  # counted once, not by each plan
    plans = tuple(
        plan_use(
            shape,
            Use(EngineSettings(threads=n_threads, extras=first_work(model.id, option.type))),
            budget,
            type=option.type,
        )[0]
        for option in shape.options
    )
    return ListedModel(model, shape, network.n_params, plans, cached)


def _details(kind: str, path: Path, n_bytes: int) -> CachedDetails:
    try:
        made = path.stat().st_mtime
    except OSError:
        made = 0.0  # gone since it was listed; reading the header will say so
    try:
        return CachedDetails(kind, str(path), n_bytes, read_gguf_header(path), "", made)
    except GgufError as error:
        return CachedDetails(kind, str(path), n_bytes, None, str(error), made)
