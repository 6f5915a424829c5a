"""What clients get: the JSON of completions, chats and their pieces, as OpenAI's clients read it.

In go a request and the engine's events; out come plain values for JSON.
https://platform.openai.com/docs/api-reference/completions and .../chat
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runtime.batch.records import Result, TokenLogprobs
from ..runtime.interface import Vocabulary

#: Why a text ended, in OpenAI's words.
_FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
#: What a stop string, or a text cut off in the middle of a character, leaves of a token's bytes.
_LOWEST = -9999.0


def finish_reason(result: Result) -> str:
    """Why a text ended."""
    return _FINISH.get(result.finish_reason, "stop")


@dataclass(slots=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_json(self) -> dict[str, int]:
        """The object that an answer has."""
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }  # fmt: skip


@dataclass(slots=True)
class TextOffsets:
    """Where each token of a text begins, in characters, while the text grows."""

    at: int = 0
    _decoded: bytearray = field(default_factory=bytearray)

    def push(self, piece: bytes) -> int:
        """Where this piece begins."""
        begin = self.at + len(self._decoded.decode("utf-8", "ignore"))
        self._decoded += piece
        return begin


@dataclass(frozen=True, slots=True)
class Form:
    """How a kind of request is answered: the names that its answers have."""

    prefix: str
    whole: str
    piece: str
    is_chat: bool


COMPLETION = Form("cmpl", "text_completion", "text_completion", False)
CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", True)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the answers to one request."""

    form: Form
    identity: str
    model: str
    vocab: Vocabulary
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """An answer in one piece."""
        return {**self._head(self.form.whole), "choices": choices, "usage": usage.as_json()}

    def piece(
        self, choices: list[dict[str, Any]], usage: Usage | None = None, *, tells: bool = False
    ) -> dict[str, Any]:
        """A part of a stream; ``tells`` is whether one of the parts has the usage."""
        head = {**self._head(self.form.piece), "choices": choices}
        if tells:
            head["usage"] = None if usage is None else usage.as_json()
        return head

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.identity, "object": kind, "created": self.created, "model": self.model,
        }  # fmt: skip

    def choice(
        self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprobs] | None,
        echoed: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """One text of an answer, with what stands in front of it."""
        choice: dict[str, Any] = {"index": index, "finish_reason": reason}
        if self.form.is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = echoed + text
        choice["logprobs"] = None if logprobs is None else self.logprobs(logprobs, TextOffsets())
        return choice

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None, *, first: bool = False
    ) -> dict[str, Any]:
        """What is new of one text of a stream."""
        choice: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": logprobs}
        if self.form.is_chat:
            choice["delta"] = {"role": "assistant", "content": text} if first else {"content": text}
        else:
            choice["text"] = text
        return choice

    def ending(self, index: int, reason: str) -> dict[str, Any]:
        """The end of one text of a stream."""
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        choice["delta" if self.form.is_chat else "text"] = {} if self.form.is_chat else ""
        return choice

    def logprobs(self, told: Iterable[TokenLogprobs], offsets: TextOffsets) -> dict[str, Any]:
        """Log-probabilities of tokens, in the form that this kind of request has."""
        if self.form.is_chat:
            return {"content": [self._entry(one) for one in told], "refusal": None}
        found: dict[str, Any] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip
        for one in told:
            found["tokens"].append(one.text)
            # of the first token of a prompt nothing is known
            is_known = not math.isnan(one.logprob)
            found["token_logprobs"].append(_finite(one.logprob) if is_known else None)
            # two tokens may look alike; the likelier one is given
            top: dict[str, float] = {}
            for token, logprob in one.top:
                top.setdefault(self._text(token), _finite(logprob))
            found["top_logprobs"].append(top if is_known else None)
            found["text_offset"].append(offsets.push(self.vocab.piece(one.token)))
        return found

    def _entry(self, one: TokenLogprobs) -> dict[str, Any]:
        return {
            **self._named(one.token, one.logprob),
            "top_logprobs": [self._named(token, logprob) for token, logprob in one.top],
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._text(token), "logprob": _finite(logprob),
            "bytes": list(self.vocab.piece(token)),
        }  # fmt: skip

    def _text(self, token: int) -> str:
        return self.vocab.piece(token).decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    """JSON has no infinity, as a token has that a constraint forbids."""
    return logprob if logprob > _LOWEST else _LOWEST


def mean_logprob(result: Result) -> float:
    """How likely a text was to the model, per token: by this, one is better than another."""
    told = result.logprobs or ()
    return sum(one.logprob for one in told) / len(told) if told else 0.0
