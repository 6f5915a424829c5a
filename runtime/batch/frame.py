"""A conversation as the one text that the model continues."""

from __future__ import annotations

from collections.abc import Sequence

from infer_os.models.styles import PromptStyle

from .records import Message


def frame(messages: Sequence[Message], style: PromptStyle, system: str = "") -> str:
    """The text in front of the next reply; ``system`` opens it if no system message does."""
    texts = []
    if system and messages[0].role != "system":
        texts.append(style.system.format(text=system))
    for message in messages:
        if message.role == "system":
            texts.append(style.system.format(text=message.content))
        elif message.role == "user":
            texts.append(style.user.format(text=message.content) + style.assistant)
        else:
            texts.append(message.content + style.end)
    return "".join(texts)
