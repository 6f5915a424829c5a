"""``infer-os serve``."""

from __future__ import annotations

from dataclasses import replace

from ..models.styles import TEMPLATE
from ..runtime.settings import EngineSettings, Extra, SamplingSettings, StopSettings
from ..serve.settings import ServeSettings
from ..store.wish import ModelWish
from ..terminal import console
from . import loading
from .groups import grouped
from .serving import Seats


@grouped()
def serve(
    *,
    model: ModelWish,
    serve_settings: ServeSettings,
    seats: Seats,
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
) -> None:
    """Answer requests over HTTP as OpenAI's API does, with a page to chat on.

    What a request does not say itself, such as its temperature, is as the options say.

    Example: infer-os serve model.gguf --port 8080
    """  # fmt: skip
    from ..serve.app import Served
    from ..serve.batch_seat import BatchSeat
    from ..serve.generation_request import Defaults
    from ..serve.server import HttpServer, bind

    extras = {Extra.SERVER}
    if seats.batch.style in ("", TEMPLATE):
        extras.add(Extra.TEMPLATE)
    settings = replace(settings, extras=settings.extras | extras)
    with bind(serve_settings) as door:
        engine = loading.load_batch_engine(model, settings, seats.batch)
        name = model.name.removesuffix(".gguf")
        names = tuple(dict.fromkeys((name, model.name, model.text)))
        defaults = Defaults(names, engine.vocab.n_tokens, sampling, stops)
        header = engine.model.header
        source = str(header.metadata.get("inferos.source.architecture", header.architecture))
        served = Served(engine.path, source, defaults)

        def ready(address: str) -> None:
            console.answer(
                f"serving {name} on {address} ({engine.n_seq} texts at once, {engine.n_ctx} "
                "tokens of context each)"
            )

        HttpServer(BatchSeat(engine), served, serve_settings, door, ready).run()
