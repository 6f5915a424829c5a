"""What a request for text asks for: bodies of /v1/completions and /v1/chat/completions, checked.

In go the fields of a body and what the server takes where they say nothing. Out comes a
:class:`GenerationRequest`, whose records are those that ``infer-os batch`` would make of the same
settings. Field by field after https://platform.openai.com/docs/api-reference, and the settings of
docs/sampling.md under their own names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from infer_os.fields import Kind, flag, number, text, whole, whole_where

from ..runtime.batch.records import Record
from ..runtime.batch.settings import MOST_SAMPLES
from ..runtime.chat.frame import Message
from ..runtime.errors import SettingsError
from ..runtime.settings import (
    NO_ADAPTER,
    NO_LIMIT,
    SAMPLER_NUMBERS,
    SAMPLER_SETTINGS,
    SamplingSettings,
    StopSettings,
)
from .asked_model import adapter_of, check_model
from .body import Body, checked
from .errors import ApiError

Made = TypeVar("Made")

#: What a prompt is: text, or tokens.
Prompt = str | tuple[int, ...]

#: Most prompts, stop strings and likeliest tokens of a request.
MOST_PROMPTS = 1024
_MOST_STOPS = 64
_MOST_LOGPROBS = 20
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
#: Fields that say who asks and where it is stored.
_HARMLESS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "stream_options",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets that does not say otherwise. ``models`` are the names it may use.

    ``adapters`` are loaded; with each of them, and with none, the model has one name more.
    """

    models: tuple[str, ...]
    n_vocab: int
    sampling: SamplingSettings
    stops: StopSettings
    adapters: tuple[str, ...] = ()

    @property
    def all_names(self) -> tuple[str, ...]:
        """The model's names, and those by which it is asked for with an adapter."""
        return (*self.models, *self.with_adapter)

    @property
    def with_adapter(self) -> dict[str, str]:
        """The adapter, or :data:`NO_ADAPTER`, of each name that has one behind a colon."""
        more = (*self.adapters, NO_ADAPTER) if self.adapters else ()
        return {f"{self.models[0]}:{adapter}": adapter for adapter in more}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Texts to write: ``n`` of the ``best_of`` for each prompt, or for a conversation.

    ``logprobs`` is how many of the likeliest tokens are told with each one, of an ``echo`` as well;
    None for no word of it. ``tells_usage`` is whether a stream ends with what it cost. Without
    ``draws`` the prompt is all that is answered.
    """

    sampling: SamplingSettings
    stops: StopSettings
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] = ()
    seed: int | None = None
    n: int = 1
    best_of: int = 1
    echo: bool = False
    logprobs: int | None = None
    stream: bool = False
    tells_usage: bool = False
    draws: bool = True
    adapter: str | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are told, or nothing else is asked."""
        return self.echo and (self.logprobs is not None or not self.draws)

    def records(self, identity: str) -> list[Record]:
        """A record for each prompt, or one for the conversation; ids begin with ``identity``."""
        # what is better than the others is what the model finds likelier
        logprobs = 0 if self.logprobs is None and self.best_of > self.n else self.logprobs
        return [
            Record(
                f"{identity}-{i}", i + 1, self.sampling, self.stops, prompt, self.messages,
                self.seed, self.best_of, "prompt", logprobs, self.scores_prompt, self.draws,
                self.adapter,
            )
            for i, prompt in enumerate(self.prompts or (None,))
        ]  # fmt: skip


def read_completion(value: dict[str, Any], defaults: Defaults) -> GenerationRequest:
    """A request of /v1/completions.

    Raises:
        ApiError: a field that is wrong, unknown or not supported.
    """
    body = Body(value)
    prompts = prompts_of(body.take_required("prompt", PROMPT), defaults.n_vocab)
    body.refuse("suffix", ": these models write on from a text, not into it", harmless=("",))
    logprobs = body.take("logprobs", whole(0, _MOST_LOGPROBS))
    echo = body.take("echo", flag(), False)
    draws = not (echo and _is_zero(value.get("max_tokens")))
    if not draws:
        body.ignore("max_tokens")
    found = _common(body, defaults, "max_tokens")
    best_of = body.take("best_of", whole(found.n, MOST_SAMPLES), found.n)
    if found.stream and best_of > found.n:
        raise ApiError(
            "best_of cannot be streamed: which is best is known at the end", param="best_of",
            code="unsupported_parameter",
        )  # fmt: skip
    body.end()
    found = replace(
        found, prompts=prompts, echo=echo, logprobs=logprobs, best_of=best_of, draws=draws
    )
    _check_scored(found)
    return found


def _is_zero(value: Any) -> bool:
    return value == 0 and not isinstance(value, bool)


def _check_scored(asked: GenerationRequest) -> None:
    """See that a request makes sense whose prompts are scored.

    Raises:
        ApiError: it is streamed, or asks for several texts of no tokens.
    """
    if asked.scores_prompt and asked.stream:
        raise ApiError(
            "logprobs of an echo cannot be streamed: ask for them without stream", param="stream",
            code="unsupported_parameter",
        )  # fmt: skip
    if not asked.draws and asked.best_of > 1:
        name = "n" if asked.n > 1 else "best_of"
        raise ApiError(
            f"{name}: with max_tokens 0 there is nothing to draw, so expected 1", param=name,
            code="invalid_value",
        )  # fmt: skip


def read_chat(value: dict[str, Any], defaults: Defaults) -> GenerationRequest:
    """A request of /v1/chat/completions.

    Raises:
        ApiError: a field that is wrong, unknown or not supported.
    """
    body = Body(value)
    messages = _messages(body.take_required("messages", _LIST))
    for name in ("tools", "functions"):
        body.refuse(name, ": these models were not taught to call any", harmless=([],))
    body.refuse("tool_choice", " without tools", harmless=("none", "auto"))
    body.refuse("function_call", " without functions", harmless=("none", "auto"))
    body.refuse("parallel_tool_calls", " without tools", harmless=(True, False))
    body.refuse("modalities", ": these models write text", harmless=(["text"],))
    for name in ("audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"):
        body.refuse(name, "")
    wants = body.take("logprobs", flag(), False)
    top = body.take("top_logprobs", whole(0, _MOST_LOGPROBS))
    if top is not None and not wants:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    form = _response_format(body.take("response_format", _OBJECT))
    found = _common(body, defaults, "max_completion_tokens", "max_tokens", schema=form)
    body.end()
    logprobs = (top or 0) if wants else None
    return replace(found, messages=messages, logprobs=logprobs, best_of=found.n)


def _common(body: Body, defaults: Defaults, *limits: str, schema: str = "") -> GenerationRequest:
    """What both kinds of requests have. ``schema`` is what else asks for a constraint."""
    name = check_model(body, defaults.all_names)
    adapter = adapter_of(body, defaults.with_adapter.get(name), defaults.adapters)
    stream = body.take("stream", flag(), False)
    tells_usage = _tells_usage(body, stream=stream)
    given = body.take_all(_SAMPLING)
    bias = _biases(body.take("logit_bias", _OBJECT, {}), defaults.n_vocab)
    constraint = body.take_all(_CONSTRAINTS)
    if schema:
        constraint["response_format"] = schema
    if bias:
        given["logit_bias"] = bias
    seed = body.take("seed", whole_where(lambda s: -1 <= s < 0xFFFFFFFF, "-1 to 4294967294"))
    n = body.take("n", whole(1, MOST_SAMPLES), 1)
    stops = _stops(body, defaults.stops, limits)
    body.ignore(*_HARMLESS)
    sampling = _sampling(given, constraint, defaults.sampling)
    if seed is None:
        seed = sampling.seed
    # a record has a seed of its own
    if sampling.seed is not None:
        sampling = replace(sampling, seed=None)
    return GenerationRequest(
        sampling, stops, seed=None if seed == -1 else seed, n=n, best_of=n,
        stream=stream, tells_usage=tells_usage, adapter=adapter,
    )  # fmt: skip


def _tells_usage(body: Body, *, stream: bool) -> bool:
    options = body.take("stream_options", _OBJECT)
    if options is None:
        return False
    if not stream:
        raise ApiError("stream_options needs stream: true", param="stream_options")
    rest = Body(options, "stream_options.")
    tells = bool(rest.take("include_usage", flag(), False))
    rest.ignore("include_obfuscation")
    rest.end()
    return tells


def _sampling(
    changes: dict[str, Any], constraint: dict[str, Any], defaults: SamplingSettings
) -> SamplingSettings:
    """The settings, with a field's own name in what is said of it."""
    if len(constraint) > 1:
        first, second, *_ = constraint
        raise ApiError(f"{first} and {second}: give one of them", param=second)
    spelled = {}
    for name, value in constraint.items():
        field = "json_schema" if name == "response_format" else name
        spelled[field] = name
        written = value if isinstance(value, str) else json.dumps(value)
        if not written:
            raise ApiError(f"{name} is empty", param=name, code="invalid_value")
        changes |= {"grammar": "", "json_schema": "", "regex": "", field: written}
    if not changes:
        return defaults
    if spelled or "logit_bias" in changes:
        return settings_of(lambda: replace(defaults, **changes), spelled)
    return settings_of(lambda: _with_numbers(defaults, tuple(changes.items())), spelled)


@lru_cache(64)
def _with_numbers(
    defaults: SamplingSettings, changes: tuple[tuple[str, float], ...]
) -> SamplingSettings:
    """Settings, which many requests of a client have in common: to check all takes a while."""
    return replace(defaults, **dict(changes))  # type: ignore[arg-type]


def settings_of(make: Callable[[], Made], spelled: dict[str, str]) -> Made:
    """A settings record; what is wrong with a field is said of the body's field.

    Raises:
        ApiError: it cannot be made.
    """
    try:
        return make()
    except SettingsError as error:
        name = spelled.get(error.field, error.field)
        raise ApiError(error.spelled(name), param=name or None, code="invalid_value") from None


def _stops(body: Body, defaults: StopSettings, limits: tuple[str, ...]) -> StopSettings:
    limit = defaults.max_tokens
    # the first name is the one that counts where both are given
    for name in reversed(limits):
        limit = body.take(name, _LIMIT, limit)
    stop = body.take("stop", _STOP, defaults.strings)
    return StopSettings(limit, stop)


def _biases(value: dict[str, Any], n_vocab: int) -> tuple[tuple[int, float], ...]:
    found = []
    for key, bias in value.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 9 or int(key) >= n_vocab:
            raise ApiError(
                f"logit_bias: {key[:60]!r} is no token; there are 0 to {n_vocab - 1}",
                param="logit_bias", code="invalid_value",
            )  # fmt: skip
        kind = number(lambda b: -100 <= b <= 100, "-100 to 100")
        found.append((int(key), checked(f"logit_bias[{key}]", bias, kind)))
    return tuple(found)


def _response_format(form: dict[str, Any] | None) -> str:
    """The JSON schema that a format asks for; empty for none."""
    if form is None:
        return ""
    body = Body(form, "response_format.")
    kind = body.take_required(
        "type", text(lambda t: t in _FORMATS, f"one of {', '.join(_FORMATS)}")
    )
    if kind != "json_schema":
        body.end()
        return '{"type": "object"}' if kind == "json_object" else ""
    inner = Body(body.take_required("json_schema", _OBJECT), "response_format.json_schema.")
    body.end()
    schema = inner.take_required("schema", _SCHEMA)
    inner.ignore("name", "description", "strict")
    inner.end()
    return json.dumps(schema)


_FORMATS = ("text", "json_object", "json_schema")


def _messages(values: list[Any]) -> tuple[Message, ...]:
    if not values:
        raise ApiError("messages is empty", param="messages", code="invalid_value")
    found = []
    for i, value in enumerate(values):
        place = f"messages[{i}]"
        body = Body(checked(place, value, _OBJECT), f"{place}.")
        role = body.take_required(
            "role", text(lambda r: r in _ROLES, f"one of {', '.join(_ROLES)}")
        )
        content = _content(body.take_required("content", _CONTENT), f"{place}.content")
        body.refuse("tool_calls", ": these models were not taught to call any", harmless=([],))
        body.ignore("name", "refusal", "annotations", "audio", "function_call")
        body.end()
        found.append(Message(_ROLES[role], content))
    if found[-1].role != "user":
        raise ApiError(
            f"messages: the last one is of the {found[-1].role}; one of the user is answered",
            param="messages", code="invalid_value",
        )  # fmt: skip
    return tuple(found)


def _content(value: str | list[Any], place: str) -> str:
    """A message's text, which may come in parts."""
    if isinstance(value, str):
        return value
    texts = []
    for i, part in enumerate(value):
        body = Body(checked(f"{place}[{i}]", part, _OBJECT), f"{place}[{i}].")
        kind = body.take_required("type", text(lambda t: t == "text", "text"))
        texts.append(body.take_required(kind, text()))
    return "\n".join(texts)


def prompts_of(value: str | list[Any], n_vocab: int, place: str = "prompt") -> tuple[Prompt, ...]:
    """One prompt or several; a list of numbers is one prompt of tokens. ``place`` names the field.

    Raises:
        ApiError: there is none, or too many, or one that is something else.
    """
    if isinstance(value, str):
        return (value,)
    if not value:
        raise ApiError(f"{place} is empty", param=place, code="invalid_value")
    if all(isinstance(item, int) for item in value):
        return (tokens_of(value, place, n_vocab),)
    if len(value) > MOST_PROMPTS:
        raise ApiError(
            f"{place} has {len(value)} texts: expected at most {MOST_PROMPTS}", param=place,
            code="invalid_value",
        )  # fmt: skip
    return tuple(_prompt(item, f"{place}[{i}]", n_vocab) for i, item in enumerate(value))


def _prompt(value: Any, place: str, n_vocab: int) -> Prompt:
    value = checked(place, value, PROMPT)
    return value if isinstance(value, str) else tokens_of(value, place, n_vocab)


def tokens_of(values: list[Any], place: str, n_vocab: int) -> tuple[int, ...]:
    """Tokens that there are.

    Raises:
        ApiError: something else is among them.
    """
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_vocab:
            kind = whole(0, n_vocab - 1, f"a token from 0 to {n_vocab - 1}")
            checked(f"{place}[{i}]", value, kind)
    return tuple(values)


def _as_texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise TypeError
    return tuple(values)


def _exactly(*kinds: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError
        return value

    return convert


_OBJECT = Kind("an object", _exactly(dict))
_LIST = Kind("a list", _exactly(list))
_SCHEMA = Kind("a JSON schema", _exactly(dict, bool))
_TEXT_OR_SCHEMA = Kind("a JSON schema", _exactly(str, dict, bool))
PROMPT = Kind("a text, a list of texts, or tokens", _exactly(str, list))
_CONTENT = Kind("a text, or a list of parts", _exactly(str, list))
_LIMIT = whole_where(lambda n: n >= 1 or n == NO_LIMIT, "1 or more, or -1 (until the context ends)")
_STOP = Kind(
    "a text or a list of texts", _as_texts,
    lambda texts: len(texts) <= _MOST_STOPS and all(texts),
    f"at most {_MOST_STOPS} texts, none of them empty",
)  # fmt: skip
#: Only types: the settings themselves know the ranges.
_SAMPLING = {
    name: whole_where(lambda k: True, "")
    if SAMPLER_SETTINGS[name].type is int
    else number(lambda x: True, "")
    for name in SAMPLER_NUMBERS
    if name != "seed"
}
_CONSTRAINTS = {"grammar": text(), "regex": text(), "json_schema": _TEXT_OR_SCHEMA}
#: Fields that ask for texts which follow rules.
CONSTRAINT_FIELDS = frozenset((*_CONSTRAINTS, "response_format"))
