"""Records to score, and the results.

In: values as a file holds them, with their line numbers. Out: a checked :class:`ScoreRecord`, or a
:class:`~..batch.records.BadRecord`; later a :class:`ScoreResult`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..batch.journal import LineForm
from ..batch.record_values import BadValue, kind_of
from ..batch.records import BadRecord, Place, ValueParser

_TEXTS = ("context", "continuation", "text")
_KNOWN = ("id", *_TEXTS)
_BLANKS = re.compile(r"\s+")

#: What the lines of the output hold.
SCORES = LineForm(
    "score", ("id", "logprob", "is_greedy", "n_tokens", "bytes", "words", "error"),
    ("tokens", "context_tokens_left_out", "line"),
    {
        "logprob": "float64", "is_greedy": "bool", "n_tokens": "int64", "bytes": "int64",
        "words": "int64", "error": "string", "tokens": "json", "context_tokens_left_out": "int64",
        "line": "int64",
    },
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """A text of which every token is scored or, with a ``context``, what follows that."""

    id: str | int
    line: int
    text: str
    context: str | None = None
    unit: str = "line"

    @property
    def n(self) -> int:
        """Results that it gets."""
        return 1

    @property
    def n_bytes(self) -> int:
        """About what it holds: its texts."""
        return sys.getsizeof(self.text) + sys.getsizeof(self.context or "")

    @property
    def place(self) -> str:
        """Where it stands, in the words of its input."""
        return f"{self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token that was scored, and the natural logarithm of its probability."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What a record got, or what went wrong with it.

    ``logprob`` is the sum over the ``n_tokens`` that were scored; ``is_greedy`` says whether each
    was the likeliest. ``n_bytes`` and ``n_words`` are those of the text, as lm-evaluation-harness
    counts them for perplexities. ``n_left_out`` tokens of the context had no room. ``tokens`` is
    None where sums alone were asked for.
    """

    id: str | int | None
    line: int
    logprob: float | None = None
    is_greedy: bool | None = None
    n_tokens: int = 0
    n_bytes: int = 0
    n_words: int = 0
    tokens: tuple[TokenScore, ...] | None = None
    n_left_out: int = 0
    error: str | None = None

    @property
    def index(self) -> int | None:
        """None: a record has one result."""
        return None

    def as_json(self) -> dict[str, Any]:
        """A line of the output."""
        line: dict[str, Any] = {
            "id": self.id, "logprob": self.logprob, "is_greedy": self.is_greedy,
            "n_tokens": self.n_tokens, "bytes": self.n_bytes, "words": self.n_words,
            "error": self.error,
        }  # fmt: skip
        if self.tokens is not None:
            line["tokens"] = [
                {"token": t.token, "text": t.text, "logprob": t.logprob} for t in self.tokens
            ]
        if self.n_left_out:
            line["context_tokens_left_out"] = self.n_left_out
        if self.error is not None:
            line["line"] = self.line
        return line


class ScoreParser(ValueParser[ScoreRecord]):
    """Makes records of texts, and of contexts with their continuations."""

    def _record(self, place: Place, value: Mapping[str, Any]) -> ScoreRecord:
        given = self._given(value, _KNOWN)
        for key in _TEXTS:
            if not isinstance(given.get(key, ""), str):
                raise BadValue(f'"{key}" is a text, not {kind_of(given[key])}')
        if ("text" in given) == ("continuation" in given):
            raise BadValue('a record has either "text", or "continuation" with its "context"')
        if "text" not in given:
            context = given.get("context", "")
            return ScoreRecord(place.id, place.line, given["continuation"], context, place.unit)
        if "context" in given:
            raise BadValue('"context" goes with "continuation", and not with "text"')
        return ScoreRecord(place.id, place.line, given["text"], None, place.unit)


def score_value_of(record: ScoreRecord) -> dict[str, Any]:
    """A record as JSON again, of which a :class:`ScoreParser` makes the same record."""
    if record.context is None:
        return {"id": record.id, "text": record.text}
    return {"id": record.id, "context": record.context, "continuation": record.text}


def score_result_of(line: int, value: Mapping[str, Any]) -> ScoreResult:
    """The result behind :meth:`ScoreResult.as_json`; a float that JSON cannot express is NaN."""

    def number(found: float | None) -> float | None:
        return math.nan if found is None and value["error"] is None else found

    told = value.get("tokens")
    tokens = None if told is None else tuple(
        TokenScore(t["token"], t["text"], math.nan if t["logprob"] is None else t["logprob"])
        for t in told
    )  # fmt: skip
    return ScoreResult(
        value["id"], line, number(value["logprob"]), value["is_greedy"], value["n_tokens"],
        value["bytes"], value["words"], tokens, value.get("context_tokens_left_out", 0),
        value["error"],
    )  # fmt: skip


#: A text, a context with its continuation, or a record as in the files of ``infer-os score``.
ScoreInput = str | tuple[str, str] | Mapping[str, Any]


def parsed_texts(texts: Iterable[ScoreInput]) -> Iterator[ScoreRecord | BadRecord]:
    """Records of texts, of pairs of a context and its continuation, and of values as of a file."""
    parser = ScoreParser()
    for number, text in enumerate(texts, 1):
        value: Any = text
        if isinstance(text, str):
            value = {"text": text}
        elif isinstance(text, (tuple, list)) and len(text) == 2:
            value = {"context": text[0], "continuation": text[1]}
        yield parser.parse(number, value, "record")


def count_bytes(text: str) -> int:
    """Of a text as UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def count_words(text: str) -> int:
    """What stands between blanks, as ``count_words`` of lm_eval/api/task.py has it."""
    return 1 + sum(1 for _ in _BLANKS.finditer(text))
