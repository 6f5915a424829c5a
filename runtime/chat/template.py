"""Chat templates: the jinja2 text in a model's file that says how its conversations are written.

A template sees the messages themselves, so that it computes the same as in transformers. For every
character of its output it is known whether it comes from the template or from a message: only the
template's own text is read with its special tokens.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from infer_os.models.styles import TEMPLATE

from ..errors import TemplateFailure
from ..interface import Vocabulary
from .frame import Drawn, Message, Piece, PieceTokenizer, Turn, Typed
from .rendering import FIRST_MESSAGE, OWN, PATIENCE, Conversation, Rendering, render

#: The special tokens that transformers gives a template, each if the model has it.
_VARIABLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
#: Renderings of earlier replies' beginnings to cache.
_MOST_LEADS = 4096
#: Appended to a message to see whether a template reads it.
_PROBE = " Qx7"

#: Runs of a rendering: whose text, and the text.
Runs = tuple[tuple[int, str], ...]

_ASKED = (Message("user", "Hello"), Message("assistant", "Yes."), Message("user", "Thanks"))


class TemplateFrame:
    """The frame that a chat template makes.

    ``merges_system`` says that the template has no place for a system prompt, which then goes
    before the first message; ``variables`` are the special tokens by name.
    """

    name = TEMPLATE
    newline = "\n"

    def __init__(self, template: str, vocab: Vocabulary) -> None:
        """Compile and try it.

        Raises:
            TemplateFailure: it cannot be compiled or rendered, or leaves messages out.
        """
        self._template = template
        self._vocab = vocab
        # one call may render several times, with one time limit for all
        self._until = time.monotonic() + PATIENCE
        self._tokenizer = PieceTokenizer(vocab)
        spelled = {f"{name}_token": vocab.special_text(name) for name in _VARIABLES}
        self.variables = {name: text for name, text in spelled.items() if text}
        self._leads: dict[tuple[Message, ...], Runs | None] = {}
        asked = Conversation(_ASKED, True)
        headed = Conversation((Message("system", "Be kind."), _ASKED[0]), True)
        first, with_system = self._render([asked, headed])
        rendering = _rendered(first)
        self._check_shown(asked, rendering, (2,))
        self.stops, self.ends = self._closing(asked, rendering)
        self.merges_system = not self._takes_system(headed, with_system)

    def tokens(self, system: str, turns: Sequence[Turn], message: str | None) -> list[int]:
        """See :meth:`~.frame.Frame.tokens`."""
        if message is None and not turns:
            return []
        self._until = time.monotonic() + PATIENCE
        return self._tokenizer.encode(self._pieces(system, turns, message))

    def written_tokens(self, messages: Sequence[Message]) -> list[int]:
        """See :meth:`~.frame.Frame.written_tokens`."""
        self._until = time.monotonic() + PATIENCE
        if messages[0].role == "system" and self.merges_system:
            messages = _merged(messages[0].content, messages[1:])
        asked = Conversation(tuple(messages), True)
        rendering = _rendered(self._render([asked])[0])
        self._check_shown(asked, rendering, range(len(messages)))
        return self._tokenizer.encode(map(_piece, rendering.runs), again=False)

    def _pieces(self, system: str, turns: Sequence[Turn], message: str | None) -> list[Piece]:
        messages = self._messages(system, turns, message)
        first = len(messages) - 2 * len(turns) - (message is not None)
        replies = range(first + 1, first + 2 * len(turns), 2)
        whole = Conversation(messages, message is not None)
        rendering = self._with_leads(whole, replies)
        if message is not None:
            self._check_shown(whole, rendering, (len(messages) - 1,))
        drawn = {
            FIRST_MESSAGE + place: Drawn(turn.reply)
            for place, turn in zip(replies, turns, strict=True)
        }
        pieces: list[Piece] = []
        # the last text that is not the template's own, and where the text after it begins
        last, behind = -1, 0
        for mark, text in rendering.runs:
            place = mark - FIRST_MESSAGE
            reply = drawn.get(mark)
            if reply is not None and text.strip() == messages[place].content.strip():
                lead = self._leads[messages[:place]]
                if last == place - 1 and lead is not None:
                    pieces[behind:] = map(_piece, lead)
                pieces.append(reply)
            else:
                pieces.append(_piece((mark, text)))
            if mark != OWN:
                last, behind = place, len(pieces)
        return pieces

    def _messages(
        self, system: str, turns: Sequence[Turn], message: str | None
    ) -> tuple[Message, ...]:
        """The conversation as a template sees it."""
        messages = []
        for turn in turns:
            reply = b"".join(map(self._vocab.piece, turn.reply)).decode("utf-8", "replace")
            messages += [Message("user", turn.message), Message("assistant", reply)]
        if message is not None:
            messages.append(Message("user", message))
        if not system:
            return tuple(messages)
        if self.merges_system:
            return tuple(_merged(system, messages))
        return (Message("system", system), *messages)

    def _with_leads(self, whole: Conversation, replies: Sequence[int]) -> Rendering:
        """The template's text; :attr:`_leads` then has what came before each of the replies.

        That is what the template wrote after a message when its reply was drawn. What it writes
        there once the reply is known may differ, often by a space that the model draws itself; the
        tokens in the cache follow the former.
        """
        if len(self._leads) > _MOST_LEADS:
            self._leads.clear()
        prompts = [whole.messages[:place] for place in replies]
        missing = [messages for messages in prompts if messages not in self._leads]
        first, *earlier = self._render([whole, *(Conversation(m, True) for m in missing)])
        for messages, lead in zip(missing, earlier, strict=True):
            self._leads[messages] = _behind_last(lead, len(messages) - 1)
        rendering = _rendered(first)
        if whole.asks:
            self._leads[whole.messages] = _behind_last(rendering, len(whole.messages) - 1)
        return rendering

    def _render(self, conversations: Sequence[Conversation]) -> list[Rendering | TemplateFailure]:
        return render(self._template, self.variables, conversations, self._until)

    def _check_shown(
        self, conversation: Conversation, rendering: Rendering, places: Sequence[int]
    ) -> None:
        """Refuse a template whose output does not depend on one of these messages.

        Raises:
            TemplateFailure: it does.
        """
        unseen = [place for place in places if not rendering.holds(place)]
        if not unseen:
            return
        others = self._render([_changed(conversation, place) for place in unseen])
        for place, other in zip(unseen, others, strict=True):
            if isinstance(other, Rendering) and other.text == rendering.text:
                last = conversation.asks and place == len(conversation.messages) - 1
                which = (
                    "the last message"
                    if last
                    else f"a message of the {conversation.messages[place].role}"
                )
                raise TemplateFailure(f"the chat template leaves out {which}")

    def _takes_system(self, headed: Conversation, rendering: Rendering | TemplateFailure) -> bool:
        if isinstance(rendering, TemplateFailure):
            return False
        try:
            self._check_shown(headed, rendering, (0,))
        except TemplateFailure:
            return False
        return True

    def _closing(
        self, asked: Conversation, rendering: Rendering
    ) -> tuple[tuple[str, ...], frozenset[int]]:
        """What ends a reply: the text or the special token that follows one in the template."""
        runs = _behind_last(rendering, 1)
        if runs is None:
            # the template changes replies beyond recognition: what stays the same after a
            # different one follows it
            other = self._render([_changed(asked, 1)])[0]
            if not isinstance(other, Rendering) or other.text == rendering.text:
                raise TemplateFailure("the chat template leaves out the replies")
            runs = _common_end(rendering, other)
        text, special = self._tokenizer.first_special(_own_beginning(runs))
        if text.strip():
            return (text.rstrip(),), frozenset()
        return (), frozenset([self._tokenizer.special_token(special)] if special else ())


def _rendered(rendering: Rendering | TemplateFailure) -> Rendering:
    """A rendering; raises the failure if there is one instead."""
    if isinstance(rendering, TemplateFailure):
        raise rendering
    return rendering


def _piece(run: tuple[int, str]) -> Piece:
    """A run as a frame's piece: only what the template wrote may be special tokens."""
    mark, text = run
    return text if mark == OWN else Typed(text)


def _behind_last(rendering: Rendering | TemplateFailure, message: int) -> Runs | None:
    """The runs after the last one of a message; None if none of its text occurs."""
    if isinstance(rendering, TemplateFailure) or not rendering.holds(message):
        return None
    runs = rendering.runs
    last = max(i for i, (mark, _) in enumerate(runs) if mark == FIRST_MESSAGE + message)
    return runs[last + 1 :]


def _common_end(one: Rendering, other: Rendering) -> Runs:
    """The runs that two renderings both end with."""
    both = zip(reversed(one.text), reversed(other.text), strict=False)
    left = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
    runs: list[tuple[int, str]] = []
    for mark, text in reversed(one.runs):
        if not left:
            break
        runs.insert(0, (mark, text[-left:]))
        left -= len(runs[0][1])
    return tuple(runs)


def _own_beginning(runs: Runs) -> str:
    """The leading text of runs, as far as it is the template's own."""
    return "".join(text for _, text in itertools.takewhile(lambda run: run[0] == OWN, runs))


def _changed(conversation: Conversation, place: int) -> Conversation:
    """The conversation with one of its messages changed."""
    messages = list(conversation.messages)
    messages[place] = replace(messages[place], content=messages[place].content + _PROBE)
    return replace(conversation, messages=tuple(messages))


def _merged(system: str, messages: Sequence[Message]) -> list[Message]:
    """The messages, with the system prompt put before the user's first for lack of a place."""
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    merged = Message("user", f"{system}\n\n{messages[first].content}")
    return [*messages[:first], merged, *messages[first + 1 :]]
