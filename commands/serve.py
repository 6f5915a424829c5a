"""``infer-os serve``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..models.styles import TEMPLATE
from ..runtime.settings import EngineSettings, Extra, SamplingSettings, StopSettings
from ..serve.settings import ServeSettings
from ..store.wish import ModelWish
from ..terminal import console
from . import loading, server_options
from .adapting import adapter_names
from .groups import grouped
from .serving import Seats, named_models

if TYPE_CHECKING:
    from ..serve.batch_seat import BatchSeat
    from ..serve.generation_request import Defaults
    from ..serve.models import Served


@grouped()
def serve(
    *,
    model: ModelWish,
    models: server_options.Models = None,
    serve_settings: ServeSettings,
    seats: Seats,
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
) -> None:
    """Answer requests over HTTP as OpenAI's API does, with a page to chat on.

    The sampling options are the defaults for whatever a request leaves out. A
    request that names no model is answered by MODEL. Those of --models are loaded when a request
    first names them.

    Example: infer-os serve model.gguf --port 8080
    """  # fmt: skip
    from ..runtime.plan.machine import read_memory
    from ..serve.generation_request import Defaults
    from ..serve.models import Offer
    from ..serve.server import HttpServer, bind

    extras = {Extra.SERVER}
    if seats.batch.style in ("", TEMPLATE):
        extras.add(Extra.TEMPLATE)
    settings = replace(settings, extras=settings.extras | extras)
    wishes = named_models(model, models)
    with bind(serve_settings) as door:
        memory = settings.memory or read_memory().usable
        defaults = [
            Defaults(names, 0, sampling, stops, adapter_names(wish)) for names, wish in wishes
        ]
        openers = [
            partial(_open, wish, settings, seats, one)
            for (_, wish), one in zip(wishes, defaults, strict=True)
        ]
        first = openers[0](None)
        # so that what cannot be found or converted is known now, and nobody waits for it later
        for _, wish in wishes[1:]:
            loading.fetch(wish)
        offers = [
            Offer(one.all_names, opener) for one, opener in zip(defaults, openers, strict=True)
        ]

        def ready(address: str) -> None:
            engine = first[0]
            besides = f"; {len(offers) - 1} more when asked for" if len(offers) > 1 else ""
            console.answer(
                f"serving {offers[0].names[0]} on {address} ({engine.n_seq} texts at once, "
                f"{engine.n_ctx} tokens of context each{besides})"
            )

        HttpServer(offers, first, serve_settings, door, ready, memory).run()


def _open(
    wish: ModelWish, settings: EngineSettings, seats: Seats, defaults: Defaults,
    memory: int | None,
) -> tuple[BatchSeat, Served]:  # fmt: skip
    """Load a model, within so many bytes if they are given."""
    from ..runtime.scoring.embedder import Embedder
    from ..serve.batch_seat import BatchSeat
    from ..serve.models import Served

    if memory is not None:
        settings = replace(settings, memory=memory)
    engine = loading.load_batch_engine(wish, settings, seats.batch)
    header = engine.model.header
    source = str(header.metadata.get("inferos.source.architecture", header.architecture))
    defaults = replace(defaults, n_vocab=engine.vocab.n_tokens)

    def open_embedder(memory: int) -> Embedder:
        alone = replace(settings, memory=max(1, memory), draft="none", prefetch=False)
        return Embedder(engine.path, alone, model=engine.model)

    return BatchSeat(engine, open_embedder), Served(engine.path, source, defaults)
