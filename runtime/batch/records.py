"""Records: what one prompt of a batch asks for, and what it gets.

In: values as a file holds them, with their line numbers. Out: a checked :class:`Record`, or a
:class:`BadRecord` that says what is wrong in which line; later a :class:`Result` for each sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Generic, NamedTuple, TypeVar

from ..chat.frame import Message
from ..errors import RuntimeFailure, SettingsError
from ..settings import (
    CONSTRAINTS,
    NO_ADAPTER,
    SAMPLER_NUMBERS,
    SAMPLER_SETTINGS,
    SamplingSettings,
    StopSettings,
)
from .record_values import (
    BIASES,
    BadValue,
    adapter_of,
    biases_of,
    constraint_of,
    kind_of,
    messages_of,
)
from .settings import MOST_SAMPLES

#: Settings of a record, and the types that they may have.
NUMBERS: dict[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    **{
        name: (int,) if SAMPLER_SETTINGS[name].type is int else (int, float)
        for name in SAMPLER_NUMBERS
    },
    "n": (int,),
}
# the seed is the record's, from which each sample gets its own
_SAMPLING = tuple(name for name in SAMPLER_NUMBERS if name != "seed")
#: Every key of a record.
KNOWN = ("id", "prompt", "messages", "stop", "adapter", *NUMBERS, BIASES, *CONSTRAINTS)
#: Python itself writes no more digits, and reads no more from JSON.
_MOST_ID_BITS = 14_000
_MOST_SEED = 0xFFFFFFFF

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt, or a conversation to continue, and how: ``n`` samples of it.

    A ``prompt`` is a text, or tokens that are taken as they are. ``logprobs`` is how many of the
    likeliest tokens a result has for each one drawn; None for the run's own number. With
    ``scores_prompt`` the first sample's result has them for the prompt's tokens as well; without
    ``draws`` it has nothing else.
    ``seed`` is the record's own; without one, and with a seed of the run, each sample gets one that
    depends on the run's seed and the id alone. ``adapter`` is "" for none, None for the run's own.
    """

    id: str | int
    line: int
    sampling: SamplingSettings
    stops: StopSettings
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Message, ...] = ()
    seed: int | None = None
    n: int = 1
    unit: str = "line"
    logprobs: int | None = None
    scores_prompt: bool = False
    draws: bool = True
    adapter: str | None = None

    @property
    def place(self) -> str:
        """Its place in the input, for messages."""
        return f"{self.unit} {self.line}"

    @property
    def n_bytes(self) -> int:
        """About what it holds: its texts."""
        sampling = self.sampling
        texts = (
            self.prompt or "", *(message.content for message in self.messages),
            *self.stops.strings, sampling.grammar, sampling.json_schema, sampling.regex,
        )  # fmt: skip
        return sum(map(sys.getsizeof, texts))

    def sample_seed(self, index: int) -> int | None:
        """The seed of a sample; None if neither the record nor the run has one."""
        if self.seed is not None:
            return self.seed if index == 0 else _derived("sample", self.seed, index)
        if self.sampling.seed is None:
            return None
        return _derived("record", self.sampling.seed, json.dumps(self.id), index)

    def sampling_of(self, index: int) -> SamplingSettings:
        """How a sample is drawn."""
        return replace(self.sampling, seed=self.sample_seed(index))


class Place(NamedTuple):
    """Where a record stands in its input, which counts it by ``unit``, and what it is called."""

    id: str | int
    line: int
    unit: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is not a record, and why. ``id`` is None if not even that can be read."""

    line: int
    error: str
    id: str | int | None = None

    @property
    def n_bytes(self) -> int:
        """About what it holds: its text."""
        return sys.getsizeof(self.error)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token, the natural logarithm of its probability, and the likeliest ones with theirs.

    They are the model's own: before temperature, filters and grammar. The first token of a prompt,
    which nothing precedes, has NaN and no others.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What was added to a sample: text that is now certain, and details of the new tokens.

    ``text`` may be empty, and lag behind the tokens: half a character, or what may become a stop
    string, is held back. The pieces of a sample, put together, are its result.
    """

    id: str | int
    index: int
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One sample of a record, or what went wrong with a record.

    ``lacks_memory`` is whether that was this machine's memory, and not the record.
    ``prompt_logprobs`` are those of the prompt's tokens, where a record asks for them.
    """

    id: str | int | None
    line: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    finish_reason: str = "error"
    error: str | None = None
    index: int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    lacks_memory: bool = False
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """A line of the output."""
        line: dict[str, Any] = {
            "id": self.id, "text": self.text, "tokens": list(self.tokens),
            "finish_reason": self.finish_reason, "error": self.error,
        }  # fmt: skip
        if self.error is not None:
            line["line"] = self.line
        if self.index is not None:
            line["index"] = self.index
        for key, told in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if told is not None:
                line[key] = [
                    {"token": p.token, "text": p.text, "logprob": p.logprob, "top": list(p.top)}
                    for p in told
                ]
        return line


def value_of(record: Record) -> dict[str, Any]:
    """A record as JSON again, with all its settings.

    A :class:`RecordParser` of the same run makes the same record from it.
    """
    sampling, stops = record.sampling, record.stops
    value: dict[str, Any] = {
        "id": record.id, "n": record.n, "max_tokens": stops.max_tokens if record.draws else 0,
        "stop": list(stops.strings),
        **{key: getattr(sampling, key) for key in _SAMPLING},
        BIASES: {str(token): bias for token, bias in sampling.logit_bias},
        **dict(sampling.constraints),
    }  # fmt: skip
    if record.seed is not None:
        value["seed"] = record.seed
    if record.adapter is not None:
        value["adapter"] = record.adapter or NO_ADAPTER
    if record.messages:
        value["messages"] = [{"role": m.role, "content": m.content} for m in record.messages]
    else:
        value["prompt"] = record.prompt
    return value


def result_of(line: int, value: Mapping[str, Any]) -> Result:
    """The result behind :meth:`Result.as_json`; a float that JSON cannot express is NaN."""
    return Result(
        value["id"], line, value["text"], tuple(value["tokens"]), value["finish_reason"],
        value["error"], value.get("index"), _logprobs_of(value.get("logprobs")),
        prompt_logprobs=_logprobs_of(value.get("prompt_logprobs")),
    )  # fmt: skip


def _logprobs_of(told: Sequence[Mapping[str, Any]] | None) -> tuple[TokenLogprobs, ...] | None:
    if told is None:
        return None
    return tuple(
        TokenLogprobs(
            p["token"], p["text"], _number(p["logprob"]),
            tuple((token, _number(logprob)) for token, logprob in p["top"]),
        )
        for p in told
    )  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _derived(*parts: str | int) -> int:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") % _MOST_SEED


class ValueParser(Generic[Parsed]):
    """Checks values one by one; remembers the ids that it has seen."""

    def __init__(self) -> None:
        self._lines: dict[str | int, int] = {}

    def parse(self, line: int, value: Any, unit: str = "line") -> Parsed | BadRecord:
        """A record from a JSON value; ``line`` counts from 1.

        It is the id of a record without one. ``unit`` is what it counts, for messages.
        """
        identity: str | int | None = None
        try:
            if not isinstance(value, Mapping):
                raise BadValue(f"a record is a JSON object, not {kind_of(value)}")
            identity = self._identity(line, value)
            record = self._record(Place(identity, line, unit), value)
            if (other := self._lines.get(identity)) is not None:
                # two answers with the same id could not be distinguished
                fault = _twice(identity, other, unit, is_own=value.get("id") is not None)
                identity = None
                raise BadValue(fault)
        except (BadValue, RuntimeFailure) as error:
            return BadRecord(line, f"{unit} {line}: {_said(error)}", identity)
        self._lines[identity] = line
        return record

    @staticmethod
    def _identity(line: int, value: Mapping[str, Any]) -> str | int:
        identity = _plain(value.get("id"))
        if identity is None:
            return line
        if isinstance(identity, bool) or not isinstance(identity, (str, int)):
            raise BadValue(f'"id" is a text or a whole number, not {kind_of(identity)}')
        if isinstance(identity, int) and identity.bit_length() > _MOST_ID_BITS:
            raise BadValue('"id" is a number with thousands of digits')
        return identity

    def _record(self, place: Place, value: Mapping[str, Any]) -> Parsed:
        """The record of a value.

        Raises:
            BadValue, RuntimeFailure: it is not one.
        """
        raise NotImplementedError

    @staticmethod
    def _given(value: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
        """What a value says; an empty field of a table says nothing."""
        if unknown := [key for key in value if key not in known]:
            raise BadValue(f"unknown setting {unknown[0]!r}; known: {', '.join(known)}")
        return {key: _plain(item) for key, item in value.items() if item is not None}


class RecordParser(ValueParser[Record]):
    """Makes records of prompts and conversations."""

    def __init__(
        self, sampling: SamplingSettings, stops: StopSettings, *, tells: bool = False
    ) -> None:
        """``sampling`` and ``stops`` apply where a record says nothing.

        ``tells`` is whether log-probabilities are told, so that 0 tokens make sense: the prompt's.
        """
        super().__init__()
        self._sampling, self._stops, self._tells = sampling, stops, tells

    def _record(self, place: Place, value: Mapping[str, Any]) -> Record:
        given = self._given(value, KNOWN)
        if ("prompt" in given) == ("messages" in given):
            raise BadValue('a record has either "prompt" or "messages"')
        for key, kinds in NUMBERS.items():
            item = given.get(key)
            if item is not None and (isinstance(item, bool) or not isinstance(item, kinds)):
                wanted = "a whole number" if kinds == (int,) else "a number"
                raise BadValue(f'"{key}" is {wanted}, not {kind_of(item)}')
        n, seed = given.get("n", 1), given.get("seed")
        if not 1 <= n <= MOST_SAMPLES:
            raise BadValue(f'"n" is {n}: expected 1 to {MOST_SAMPLES}')
        sampling = replace(
            self._sampling, **{k: given[k] for k in _SAMPLING if k in given},
            **biases_of(given), **constraint_of(given),
        )  # fmt: skip
        if seed is not None:  # -1 is drawn here, so that every node of a cluster has the same
            seed = replace(sampling, seed=seed).chosen_seed()
        if "prompt" in given and not isinstance(given["prompt"], str):
            raise BadValue(f'"prompt" is a text, not {kind_of(given["prompt"])}')
        draws = given.get("max_tokens") != 0
        if not draws:
            del given["max_tokens"]
            self._check_scored(n)
        return Record(
            place.id, place.line, sampling, self._stops_of(given), given.get("prompt"),
            messages_of(given["messages"]) if "messages" in given else (), seed, n, place.unit,
            scores_prompt=not draws, draws=draws, adapter=adapter_of(given),
        )  # fmt: skip

    def _check_scored(self, n: int) -> None:
        """See that a record makes sense whose ``max_tokens`` are 0."""
        if not self._tells:
            raise BadValue('"max_tokens" 0: expected 1 or more, or -1; 0 needs logprobs')
        if n > 1:
            raise BadValue(f'"n" is {n}: with "max_tokens" 0 nothing is drawn, so expected 1')

    def _stops_of(self, given: Mapping[str, Any]) -> StopSettings:
        stop = given.get("stop", self._stops.strings)
        strings = (stop,) if isinstance(stop, str) else stop
        if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) for s in strings):
            raise BadValue(f'"stop" is a text or a list of texts, not {kind_of(stop)}')
        if not all(strings):
            raise BadValue('"stop" has an empty text')
        return StopSettings(given.get("max_tokens", self._stops.max_tokens), tuple(strings))


def _twice(identity: str | int, other: int, unit: str, *, is_own: bool) -> str:
    if is_own:
        return f"the id {identity!r} is already that of {unit} {other}"
    return (
        f"it has no id, and its number, {identity}, is already the id of {unit} {other}; give all "
        "records an id, or none"
    )


def _said(error: Exception) -> str:
    """What is wrong, with the setting's name as in a record."""
    if not isinstance(error, SettingsError):
        return str(error)
    key = "stop" if error.field == "strings" else error.field
    return error.spelled(f'"{key}"')


def _plain(value: Any) -> Any:
    """A numpy number, which a table's rows may have in Python, as a Python number."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


#: A prompt, whose id is its number from 1 on, or a record as in the files of ``infer-os batch``.
BatchInput = str | Mapping[str, Any]


def parsed_prompts(
    prompts: Iterable[BatchInput], sampling: SamplingSettings, stops: StopSettings,
    *, tells: bool = False,
) -> Iterator[Record | BadRecord]:  # fmt: skip
    """Records of prompts, whose ids are their numbers, or of mappings as files hold them."""
    parser = RecordParser(sampling, stops, tells=tells)
    for number, prompt in enumerate(prompts, 1):
        value = {"prompt": prompt} if isinstance(prompt, str) else prompt
        yield parser.parse(number, value, "record")
