"""Answer requests for text: from a body to an answer, whole or streamed.

What takes its time before a text is computed (a chat template, a grammar, a long prompt) happens in
a thread beside the event loop and the engine's, one request at a time, since templates keep state.
A short prompt takes less than the way to that thread and back, and is tokenized where it is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..runtime.batch.records import Piece, Record, Result
from ..runtime.errors import PromptError, TemplateFailure
from .answers import Form, TextOffsets, Usage, Writer, finish_reason, mean_logprob
from .client_bodies import ReadBody, while_connected
from .engine_thread import Answer, EngineThread
from .errors import ApiError
from .event_stream import EventStream, json_bytes
from .generation_request import (
    CONSTRAINT_FIELDS,
    Defaults,
    GenerationRequest,
    read_chat,
    read_completion,
)
from .metrics import Metrics
from .pushed_engine import Event
from .score_room import ScoreRoom

#: Seconds without an event, after which a stream shows that it is alive.
QUIET_S = 15.0
#: A record, and its prompt as tokens.
Job = tuple[Record, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Work:
    """A request that is being answered. ``began`` is when it came, by the monotonic clock."""

    asked: GenerationRequest
    jobs: list[Job]
    answer: Answer
    writer: Writer
    began: float

    @property
    def usage(self) -> Usage:
        """The prompts' tokens; nothing was drawn yet."""
        return Usage(sum(len(prompt) for _, prompt in self.jobs))

    def index(self, identity: str | int | None, sample: int) -> int:
        """The number of a text: those of the first prompt come first."""
        return int(str(identity).rpartition("-")[2]) * self.asked.n + sample


class Generator:
    """Writes the texts that requests to a model ask for."""

    def __init__(self, thread: EngineThread, defaults: Defaults, metrics: Metrics) -> None:
        self._thread, self._defaults, self._metrics = thread, defaults, metrics
        self._preparing = ThreadPoolExecutor(1, "prompts")
        self._n_preparing = 0
        self._room = ScoreRoom()

    def close(self) -> None:
        """Prepare nothing more."""
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def prepared(self, work: Callable[[], Any]) -> Any:
        """Do something with text in the thread for it."""
        self._n_preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, work)
        finally:
            self._n_preparing -= 1

    async def answer(self, request: Request, form: Form, body: ReadBody) -> Response:
        """Answer a request of /v1/completions or /v1/chat/completions.

        Raises:
            ApiError: it is wrong, or there is no room.
            ClientDisconnect: the client is gone.
        """
        # that no two are alike is enough: nobody is let in by it
        identity = f"{form.prefix}-{random.getrandbits(128):032x}"
        asked, jobs = await self._prepare(form, body, identity)
        writer = Writer(form, identity, self._defaults.models[0], self._thread.engine.vocab)
        began = body.began

        def submitted() -> _Work:
            answer = self._thread.submit(jobs, streams=asked.stream)
            return _Work(asked, jobs, answer, writer, began)

        if asked.stream:
            if request.scope["http_version"] == "1.0":
                raise ApiError("HTTP/1.0 has no streams: ask as HTTP/1.1", param="stream")
            work = submitted()
            return EventStream(request, self._streamed(work), work.answer.cancel)
        n_scores = 0
        if asked.scores_prompt:
            n_scores = (1 + (asked.logprobs or 0)) * sum(len(prompt) for _, prompt in jobs)
        value = await while_connected(request, self._whole_in_turn(n_scores, submitted))
        self._metrics.duration.observe(time.monotonic() - began)
        return Response(json_bytes(value), media_type="application/json")

    async def _whole_in_turn(self, n_scores: int, submitted: Callable[[], _Work]) -> dict[str, Any]:
        """An answer, once there is room for so many log-probabilities of prompts."""
        await self._room.take(n_scores)
        try:
            work = submitted()
            try:
                return await self._whole(work)
            finally:
                work.answer.cancel()
        finally:
            self._room.give(n_scores)

    async def _prepare(
        self, form: Form, body: ReadBody, identity: str
    ) -> tuple[GenerationRequest, list[Job]]:
        """What is asked, and its prompts as tokens."""
        read = read_chat if form.is_chat else read_completion

        def prepare() -> tuple[GenerationRequest, list[Job]]:
            asked = read(body.value, self._defaults)
            return asked, [(record, self._tokens(record)) for record in asked.records(identity)]

        is_quick = body.is_short and not (form.is_chat or body.value.keys() & CONSTRAINT_FIELDS)
        if is_quick and not self._n_preparing:
            return prepare()
        return await self.prepared(prepare)  # type: ignore[no-any-return]

    def _tokens(self, record: Record) -> tuple[int, ...]:
        """A record's prompt, which fits into a context."""
        param = "messages" if record.messages else "prompt"
        n_ctx = self._thread.engine.n_ctx
        try:
            prompt = self._thread.engine.prompt_tokens(record)
        except PromptError as error:
            raise _too_long(str(error), param) from None
        except TemplateFailure as error:
            raise ApiError(str(error), param=param, code="template_failed") from None
        if len(prompt) > n_ctx:
            raise _too_long(
                f"{param} has {len(prompt)} tokens, but the context holds {n_ctx}", param
            )
        if not prompt:
            raise ApiError(f"{param} is empty", param=param, code="invalid_value")
        return prompt

    async def _whole(self, work: _Work) -> dict[str, Any]:
        usage, results = work.usage, dict[str, list[Result]]()
        async for result in self._results(work, usage):
            results.setdefault(str(result.id), []).append(result)
        choices = []
        for record, _ in work.jobs:
            found = results[str(record.id)]
            # a prompt is scored once, whatever number of texts it gets
            scored = next((r.prompt_logprobs for r in found if r.prompt_logprobs is not None), ())
            for i, result in enumerate(self._best(work.asked, found)):
                told = None
                if work.asked.logprobs is not None:
                    told = (*scored, *(result.logprobs or ()))
                choices.append(work.writer.choice(
                    work.index(record.id, i), result.text, finish_reason(result), told,
                    self._echoed(work.asked, record),
                ))  # fmt: skip
        return work.writer.whole(choices, usage)

    async def _results(self, work: _Work, usage: Usage) -> AsyncGenerator[Result, None]:
        """Finished samples."""
        is_first = True
        while work.answer.is_open:
            for event in await work.answer.take(QUIET_S):
                if isinstance(event, Result):
                    usage.completion_tokens += len(event.tokens)
                    yield event
                else:
                    is_first = self._note_first(work, is_first=is_first)

    def _note_first(self, work: _Work, *, is_first: bool) -> bool:
        if is_first:
            self._metrics.first_token.observe(time.monotonic() - work.began)
        return False

    def _best(self, asked: GenerationRequest, results: list[Result]) -> list[Result]:
        if asked.best_of == asked.n:
            return sorted(results, key=lambda result: result.index or 0)
        return sorted(results, key=mean_logprob, reverse=True)[: asked.n]

    def _echoed(self, asked: GenerationRequest, record: Record) -> str:
        """The prompt, where it is to stand in front of the text."""
        if not asked.echo:
            return ""
        if isinstance(record.prompt, str):
            return record.prompt
        return self.text_of(record.prompt or ())

    def text_of(self, tokens: tuple[int, ...]) -> str:
        """What tokens stand for."""
        pieces = map(self._thread.engine.vocab.piece, tokens)
        return b"".join(pieces).decode("utf-8", "replace")

    async def _streamed(self, work: _Work) -> AsyncGenerator[list[Any], None]:
        async for values in self._chunks(work):
            yield values
        self._metrics.duration.observe(time.monotonic() - work.began)

    async def _chunks(self, work: _Work) -> AsyncGenerator[list[Any], None]:
        """What is sent together: what came of all texts since the last time."""
        writer, usage, tells = work.writer, work.usage, work.asked.tells_usage
        offsets: dict[int, TextOffsets] = {}
        beginnings = []
        for record, _ in work.jobs:
            echoed = self._echoed(work.asked, record)
            for sample in range(record.n):
                index = work.index(record.id, sample)
                offsets[index] = TextOffsets(len(echoed))
                if writer.form.is_chat or echoed:
                    beginnings.append(writer.delta(index, echoed, None, first=True))
        if beginnings:
            yield [writer.piece([beginning], tells=tells) for beginning in beginnings]
        is_first = True
        while work.answer.is_open:
            choices: list[dict[str, Any]] = []
            events = await work.answer.take(QUIET_S)
            for event in joined(events):
                index = work.index(event.id, event.index or 0)
                if isinstance(event, Result):
                    usage.completion_tokens += len(event.tokens)
                    choices.append(writer.ending(index, finish_reason(event)))
                    continue
                is_first = self._note_first(work, is_first=is_first)
                told = writer.logprobs(event.logprobs, offsets[index]) if event.logprobs else None
                if event.text or told:
                    choices.append(writer.delta(index, event.text, told))
            values: list[Any] = [writer.piece([choice], tells=tells) for choice in choices]
            if tells and not work.answer.is_open:
                values.append(writer.piece([], usage, tells=True))
            if values or not events:  # where nothing happens, a sign of life
                yield values or [None]


def joined(events: list[Event]) -> Iterator[Event]:
    """The same, sample by sample, with one piece for all those of a sample."""
    samples: dict[tuple[str | int | None, int], list[Event]] = {}
    for event in events:
        samples.setdefault((event.id, event.index or 0), []).append(event)
    for sample in samples.values():
        pieces = [event for event in sample if isinstance(event, Piece)]
        if pieces:
            yield Piece(
                pieces[0].id, pieces[0].index, "".join(piece.text for piece in pieces),
                tuple(one for piece in pieces for one in piece.logprobs),
            )  # fmt: skip
        yield from (event for event in sample if isinstance(event, Result))


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(message, 413, param=param, code="context_length_exceeded")
