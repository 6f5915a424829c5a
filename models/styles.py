"""Prompt styles: how a conversation becomes one text, for models that only continue text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The frame around each message.

    A turn is ``user`` with the message filled in, then ``assistant``, behind which the model
    writes until one of ``stops``; ``end`` closes its reply. ``system`` frames the first message.
    """

    name: str
    system: str
    user: str
    assistant: str
    end: str
    stops: tuple[str, ...]


#: Two speakers, for base models, that know dialogues from their training texts.
DIALOGUE = PromptStyle(
    name="dialogue",
    system="{text}\n\n",
    user="User: {text}\n",
    assistant="Assistant:",
    end="\n",
    stops=("\nUser:", "\nAssistant:"),
)

#: No frame: the model continues what is typed.
PLAIN = PromptStyle(
    name="plain", system="{text}\n\n", user="{text}", assistant="", end="\n", stops=()
)

STYLES: dict[str, PromptStyle] = {style.name: style for style in (DIALOGUE, PLAIN)}
