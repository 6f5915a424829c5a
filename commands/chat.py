"""``infer-os chat``."""

from __future__ import annotations

import typer

from ..runtime.settings import EngineSettings, SamplingSettings, StopSettings
from ..store.wish import ModelWish
from ..terminal import console
from .groups import grouped
from .remote import AskedServer, given_fields
from .talk import CHAT_DEFAULTS, TalkSettings, conversation_on


@grouped(**CHAT_DEFAULTS)
def chat(
    *,
    invocation: typer.Context,
    model: ModelWish,
    talk: TalkSettings,
    stops: StopSettings,
    sampling: SamplingSettings,
    settings: EngineSettings,
    server: AskedServer = None,
) -> None:
    """Chat with a model. Ctrl-C ends a reply, Ctrl-D the program; /help lists commands."""
    from ..terminal.conversation import converse, history_file

    if server is not None:
        from .remote_chat import RemoteChat, converse_with_server

        fields = given_fields(invocation, sampling, stops, used=frozenset({"model", "system"}))
        converse_with_server(RemoteChat(server, model.text, talk.system, fields), history_file())
        return
    with conversation_on(model, talk, settings) as session:
        console.note("/help lists commands, Ctrl-D ends.")
        converse(session, sampling, stops, history_file())
