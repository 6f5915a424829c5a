"""Which frame a model's conversations get: its own template, its family's style, or another one.

In: a style's name and a model, of one sequence or of many. Out: the frame, and what the user
should know about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from infer_os.models.styles import DIALOGUE, STYLES, TEMPLATE

from ..errors import SettingsError, TemplateFailure
from ..interface import Vocabulary
from ..settings import check_style
from .frame import Frame, StyleFrame
from .template import TemplateFrame


class SpeakerInfo(Protocol):
    """What a model's file says about conversations."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def chat_template(self) -> str | None:
        """Its chat template, if it has one."""
        ...

    @property
    def style(self) -> str:
        """The name of its family's style."""
        ...


class Speaker(Protocol):
    """A loaded model, as far as a frame needs it."""

    @property
    def info(self) -> SpeakerInfo:
        """What its file says."""
        ...

    @property
    def vocab(self) -> Vocabulary:
        """Its vocabulary."""
        ...


def make_frame(style: str, speaker: Speaker) -> Frame:
    """The frame of a style's name, or of the model's own chat template for ``template``.

    Raises:
        SettingsError: there is no such style, or the model has no template.
        TemplateFailure: the template cannot be used.
    """
    info = speaker.info
    if style == TEMPLATE:
        if info.chat_template is None:
            raise SettingsError(
                f"--style template: {info.path} has no chat template; --style {info.style} does "
                "without one"
            )
        return TemplateFrame(info.chat_template, speaker.vocab)
    check_style(style)
    return StyleFrame(STYLES[style], speaker.vocab)


def choose_frame(speaker: Speaker, style: str = "", system: str = "") -> tuple[Frame, list[str]]:
    """The frame for a style's name; by default the model's own template, else its style.

    Returns it with notes on anything unexpected.

    Raises:
        SettingsError: there is no such style, or the model has no template.
        TemplateFailure: its template was asked for and cannot be used.
    """
    info, notes = speaker.info, []
    own = info.style
    if own not in STYLES:
        own = DIALOGUE.name
        if not style and info.chat_template is None:
            notes.append(f"the file's style {info.style} is unknown here; {own} is used")
    name = style or (own if info.chat_template is None else TEMPLATE)
    try:
        frame = make_frame(name, speaker)
    except TemplateFailure as error:
        if style:
            raise TemplateFailure(f"{error}; --style {own} does without it") from error
        notes.append(f"{error}; style {own} is used instead")
        frame = make_frame(own, speaker)
    if isinstance(frame, StyleFrame) and frame.missing_markers:
        notes.append(
            f"style {frame.name}: this model has no token {', '.join(frame.missing_markers)}; "
            "written as letters"
        )
    if isinstance(frame, TemplateFrame) and frame.merges_system and system:
        notes.append("the chat template takes no system prompt; it is put before the first message")
    return frame, notes
