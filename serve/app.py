"""The map of addresses, and what every answer has in common.

In go models and settings; out comes an application (ASGI) that uvicorn runs. Whatever
is refused, at any address, is one :class:`~.errors.ApiError`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infer_os.fields import Kind, flag, text

from .answers import CHAT, COMPLETION, Form
from .asked_model import check_model
from .body import Body, checked
from .client_bodies import body_limit, read_json, while_connected
from .embeddings import embeddings, read_embeddings, tokens_of_inputs
from .errors import ENDING, ApiError
from .event_stream import json_bytes
from .gate import Gate
from .generation_request import tokens_of
from .metrics import MEDIA_TYPE, Metrics, rss_bytes
from .models import Entry, Models
from .page import page_responses
from .settings import ServeSettings

_logger = logging.getLogger("infer_os")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]  # fmt: skip


def make_app(models: Models, settings: ServeSettings) -> ASGIApp:
    """The application of a server."""
    desk = _Desk(models)
    routes = [
        Route("/v1/models", desk.models),
        Route("/v1/models/{name:path}", desk.model),
        Route("/v1/completions", desk.complete, methods=["POST"]),
        Route("/v1/chat/completions", desk.chat, methods=["POST"]),
        Route("/v1/embeddings", desk.embeddings, methods=["POST"]),
        Route("/tokenize", desk.tokenize, methods=["POST"]),
        Route("/detokenize", desk.detokenize, methods=["POST"]),
        Route("/health", desk.health),
        Route("/status", desk.status),
        Route("/metrics", desk.metrics),
        *(Route(path, answer) for path, answer in page_responses()),
    ]
    handlers: Any = {
        ApiError: _refusal, HTTPException: _http_refusal, ClientDisconnect: _nobody,
        Exception: _bug,
    }  # fmt: skip
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    app = _Guarded(app, Gate(settings), models.metrics, {route.path for route in routes})
    if settings.cors:
        app = CORSMiddleware(
            app, allow_origins=settings.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    return app


def answer_of(value: Any, status: int = 200) -> Response:
    """JSON."""
    return Response(json_bytes(value), status, media_type="application/json")


class _Desk:
    """What is asked, and of which model."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._began = int(time.time())

    async def complete(self, request: Request) -> Response:
        """Texts that go on from prompts."""
        return await self._generate(request, COMPLETION)

    async def chat(self, request: Request) -> Response:
        """The next message of a conversation."""
        return await self._generate(request, CHAT)

    async def _generate(self, request: Request, form: Form) -> Response:
        # where nothing can be taken, nothing is read
        self._models.check_room()
        body = await read_json(request, body_limit(self._models.n_ctx))
        async with self._models.lent(body.value.get("model")) as loaded:
            return await loaded.generator.answer(request, form, body)

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts."""
        self._models.check_room()
        read = await read_json(request, body_limit(self._models.n_ctx))
        async with self._models.lent(read.value.get("model")) as loaded:
            defaults, thread = loaded.served.defaults, loaded.thread
            asked = read_embeddings(read.value, defaults)
            inputs = await loaded.generator.prepared(lambda: tokens_of_inputs(asked, thread))
            work = embeddings(asked, inputs, thread, defaults.models[0])
            data = await while_connected(request, work)
            return Response(data, media_type="application/json")

    async def models(self, request: Request) -> Response:
        """The models that there are."""
        data = [
            self._model(name, entry) for entry in self._models.entries for name in entry.offer.names
        ]
        return answer_of({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        return answer_of(self._model(name, self._models.find(name)))

    def _model(self, name: str, entry: Entry) -> dict[str, Any]:
        value: dict[str, Any] = {
            "id": name, "object": "model", "created": self._began, "owned_by": "infer-os",
        }  # fmt: skip
        if entry.n_ctx:  # known once it was loaded
            value["context_length"] = entry.n_ctx
        return value

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text."""
        read = await read_json(request, body_limit(self._models.n_ctx))
        async with self._models.lent(read.value.get("model")) as loaded:
            body = Body(read.value)
            check_model(body, loaded.served.defaults.all_names)
            content = body.take_required("content", text())
            add = body.take("add_special", flag(), False)
            special = body.take("parse_special", flag(), True)
            body.end()
            vocab = loaded.thread.engine.vocab
            tokens = await loaded.generator.prepared(
                lambda: vocab.tokenize(content, add_special=add, parse_special=special)
            )
        return answer_of({"tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        read = await read_json(request, body_limit(self._models.n_ctx))
        async with self._models.lent(read.value.get("model")) as loaded:
            body = Body(read.value)
            check_model(body, loaded.served.defaults.all_names)
            values = body.take_required("tokens", _ANY)
            body.end()
            n_vocab = loaded.thread.engine.n_vocab
            tokens = tokens_of(checked("tokens", values, _LIST), "tokens", n_vocab)
            return answer_of({"content": loaded.generator.text_of(tokens)})

    async def health(self, request: Request) -> Response:
        """Whether texts are computed."""
        if self._models.failure is not None:
            raise ApiError(str(self._models.failure), 503)
        return answer_of({"status": "ok"})

    async def status(self, request: Request) -> Response:
        """What the server holds and does; what is of one model alone is the first one's."""
        first, figures = self._models.entries[0], self._models.figures
        served = first.served
        assert served is not None  # it was loaded before anybody was answered
        sampling, stops = served.defaults.sampling, served.defaults.stops
        threads = self._models.threads
        return answer_of({
            "model": first.name, "file": served.path.name, "source": served.source,
            "context": first.n_ctx, "parallel": first.n_seq,
            "running": sum(thread.n_running for thread in threads),
            "waiting": sum(thread.n_waiting for thread in threads),
            "prompt_tokens": figures.prompt_tokens, "shared_tokens": figures.shared_tokens,
            "completion_tokens": figures.completion_tokens, "since": self._began,
            "memory": {"rss_bytes": rss_bytes(), "planned_bytes": figures.planned_bytes},
            "models": [entry.as_json() for entry in self._models.entries],
            "defaults": {
                "temperature": sampling.temperature, "top_k": sampling.top_k,
                "top_p": sampling.top_p, "min_p": sampling.min_p,
                "repeat_penalty": sampling.repeat_penalty, "max_tokens": stops.max_tokens,
            },
        })  # fmt: skip

    async def metrics(self, request: Request) -> Response:
        """Counts, for Prometheus."""
        return Response(self._models.metrics.text(), media_type=MEDIA_TYPE)


_ANY = Kind("a list", lambda value: value)
_LIST = Kind("a list", list)


class _Guarded:
    """The gate in front of an application; counts what is answered, and adds common headers."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._gate, self._metrics, self._paths = app, gate, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, is_begun = scope["path"], False

        async def counted(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                known = path if path in self._paths else "other"
                self._metrics.requests.labels(known, str(message["status"])).inc()
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        request = Request(scope, receive)
        try:
            self._gate.check(path, request.headers)
        except ApiError as error:
            await _refused(error)(scope, receive, counted)
            return
        try:
            await self._app(scope, receive, counted)
        except asyncio.CancelledError:  # the time for answers to end is over
            if is_begun:
                raise
            await _refused(ENDING)(scope, receive, counted)


def _refused(error: ApiError) -> Response:
    response = answer_of(error.as_json(), error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    if error.status in (408, 413):  # what is left of the body is not waited for
        response.headers["connection"] = "close"
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


async def _refusal(request: Request, error: ApiError) -> Response:
    return _refused(error)


async def _http_refusal(request: Request, error: HTTPException) -> Response:
    """What Starlette itself refuses: an address that is not there, or another method."""
    words = {404: "there is nothing at", 405: f"{request.method} is not answered at"}
    said = words.get(error.status_code, error.detail)
    response = _refused(ApiError(f"{said} {request.url.path[:200]!r}", error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _nobody(request: Request, error: ClientDisconnect) -> Response:
    """The client is gone: the answer is for the counts alone."""
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    _logger.error("%s: %s: %s (a bug)", request.url.path, type(error).__name__, error)
    _logger.debug("where it came from", exc_info=error)
    return _refused(ApiError(f"a bug of the server: {type(error).__name__}", 500))
