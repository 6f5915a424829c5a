"""``infer-os chat``."""

from __future__ import annotations

from ..runtime.settings import (
    EngineSettings,
    SamplingSettings,
    StopSettings,
)
from ..store.wish import ModelWish
from ..terminal import console
from .groups import grouped
from .talk import CHAT_DEFAULTS, TalkSettings, conversation_on


@grouped(**CHAT_DEFAULTS)
def chat(
    *,
    model: ModelWish,
    talk: TalkSettings,
    sampling: SamplingSettings,
    stops: StopSettings,
    settings: EngineSettings,
) -> None:
    """Chat with a model. Ctrl-C ends a reply, Ctrl-D the program; /help lists commands."""
    from ..terminal.conversation import converse, history_file

    with conversation_on(model, talk, settings) as session:
        console.note("/help lists commands, Ctrl-D ends.")
        converse(session, sampling, stops, history_file())
