"""Chat templates: the jinja2 text in a model's file that says how its conversations are written.

They come from strangers: jinja2's immutable sandbox renders them, and they see placeholders
instead of messages. What they write around those is read with its special tokens, the messages that
take the places are not.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from infer_os.models.styles import TEMPLATE

from .engine import Vocabulary
from .errors import TemplateFailure
from .frame import Drawn, Message, Piece, PieceTokenizer, Turn, Typed

if TYPE_CHECKING:
    from jinja2 import Template

_LONGEST_REASON = 200


class TemplateFrame:
    """The frame that a chat template makes.

    ``merges_system`` says that the template has no place for a system prompt, which therefore goes
    in front of the first message.
    """

    name = TEMPLATE
    newline = "\n"

    def __init__(self, template: str, vocab: Vocabulary) -> None:
        """Compile and try it.

        Raises:
            TemplateFailure: it cannot be compiled or rendered, or leaves messages out.
        """
        # nothing that a person types can look like this, and no filter changes it
        self._mark = f"x{secrets.token_hex(12)}x"
        self._holder = re.compile(f"{self._mark}([surm])([0-9]+)z")
        self._tokenizer = PieceTokenizer(vocab)
        self._template = _compile(template)
        self._variables = {"bos_token": vocab.special_text("bos"),
                           "eos_token": vocab.special_text("eos")}  # fmt: skip
        self.merges_system = False
        self._leads: dict[tuple[bool, int], str] = {}
        parts = self._holder.split(self._render(False, 1, True))
        self.stops, self.ends = self._closing(parts)
        self.merges_system = not self._takes_system()

    def tokens(self, system: str, turns: Sequence[Turn], message: str | None) -> list[int]:
        """See :meth:`~.frame.Frame.tokens`."""
        if message is None and not turns:
            return []
        return self._tokenizer.encode(self._pieces(system, turns, message))

    def written_tokens(self, messages: Sequence[Message]) -> list[int]:
        """See :meth:`~.frame.Frame.written_tokens`."""
        return self._tokenizer.encode(self._written(messages), again=False)

    def _written(self, messages: Sequence[Message]) -> Iterator[Piece]:
        first = messages[0]
        if first.role == "system" and self.merges_system:
            messages = _merged(first.content, messages[1:])
        held = [(m.role, f"{self._mark}m{i}z") for i, m in enumerate(messages)]
        text = self._rendered(held, asks=True)
        for role, holder in held:
            if holder not in text:
                raise TemplateFailure(f"the chat template leaves out a message of the {role}")
        parts = self._holder.split(text)
        yield parts[0]
        for index, after in zip(parts[2::3], parts[3::3], strict=True):
            yield Typed(messages[int(index)].content)
            yield after

    def _pieces(self, system: str, turns: Sequence[Turn], message: str | None) -> Iterator[Piece]:
        apart = bool(system) and not self.merges_system
        parts = self._holder.split(self._render(apart, len(turns), message is not None))
        yield parts[0]
        for at in range(1, len(parts), 3):
            kind, index, after = parts[at], int(parts[at + 1]), parts[at + 2]
            if kind == "s":
                yield Typed(system)
            elif kind == "r":
                yield Drawn(turns[index].reply)
            else:
                asked = turns[index].message if index < len(turns) else message or ""
                if self.merges_system and system and index == 0:
                    asked = _behind(system, asked)
                yield Typed(asked)
                if parts[at + 3 : at + 5] == ["r", str(index)]:
                    after = self._lead(apart, index)
            yield after

    def _lead(self, system: bool, index: int) -> str:
        """What the template wrote behind a message when its reply was drawn.

        What it writes there of a reply that is known may differ, often by a space that the model
        draws itself; the tokens in the cache stand behind this.
        """
        if (system, index) not in self._leads:
            text = self._render(system, index, True)
            self._leads[system, index] = text.rpartition(f"{self._mark}u{index}z")[2]
        return self._leads[system, index]

    def _render(self, system: bool, n_turns: int, asks: bool) -> str:
        """The template's text for so many turns and perhaps a message, with placeholders."""
        messages = [("system", f"{self._mark}s0z")] if system else []
        for i in range(n_turns):
            messages += [("user", f"{self._mark}u{i}z"), ("assistant", f"{self._mark}r{i}z")]
        last = f"{self._mark}u{n_turns}z"
        if asks:
            messages.append(("user", last))
        text = self._rendered(messages, asks=asks)
        if asks and last not in text:
            raise TemplateFailure("the chat template leaves out the last message")
        return text

    def _rendered(self, messages: Sequence[tuple[str, str]], *, asks: bool) -> str:
        """The template's text of roles and contents; ``asks``: a reply shall follow."""
        try:
            return self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=asks,
                **self._variables,
            )
        # a template can fail in as many ways as a program
        except Exception as error:
            raise TemplateFailure(f"the chat template fails: {_reason(error)}") from error

    def _takes_system(self) -> bool:
        try:
            return f"{self._mark}s0z" in self._render(True, 0, True)
        except TemplateFailure:
            return False

    def _closing(self, parts: Sequence[str]) -> tuple[tuple[str, ...], frozenset[int]]:
        """What ends a reply: the text or the special token that follows one in the template."""
        for kind, after in zip(parts[1::3], parts[3::3], strict=True):
            if kind == "r":
                text, special = self._tokenizer.first_special(after)
                if text.strip():
                    return (text.rstrip(),), frozenset()
                return (), frozenset([self._tokenizer.special_token(special)] if special else ())
        raise TemplateFailure("the chat template leaves out the replies")


def _behind(system: str, message: str) -> str:
    """A message behind the system prompt that the template has no place for."""
    return f"{system}\n\n{message}"


def _merged(system: str, messages: Sequence[Message]) -> list[Message]:
    """The messages, the first of the user behind the system prompt."""
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    merged = Message("user", _behind(system, messages[first].content))
    return [*messages[:first], merged, *messages[first + 1 :]]


def _compile(template: str) -> Template:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # as transformers sets it up (apply_chat_template), for which templates are written
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = time.strftime
    try:
        return environment.from_string(template)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateFailure(f"the chat template is malformed: {_reason(error)}") from error


def _refuse(message: object) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(str(message))


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
