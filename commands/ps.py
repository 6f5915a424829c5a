"""``infer-os ps``."""

from __future__ import annotations

import time

from ..sizes import size_text
from ..terminal import console
from . import options, server_options
from .serving import api_key


def ps(
    *,
    server: server_options.Server = "http://127.0.0.1:8080",
    api_key_file: server_options.ApiKeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Show which models a server has loaded, and what it is doing.

    Example: infer-os ps --server http://127.0.0.1:8080
    """  # fmt: skip
    from ..serve.client import read_status

    status = read_status(server, api_key(api_key_file))
    if as_json:
        console.answer_json(status)
        return
    memory = status["memory"]
    rows = (
        ("model", f"{status['model']} ({status['source']}, {status['file']})"),
        ("texts", f"{status['running']} computed, {status['waiting']} waiting, at most "
                  f"{status['parallel']} at once"),
        ("context", f"{status['context']} tokens each"),
        ("tokens", f"{status['prompt_tokens']} of prompts, {status['shared_tokens']} of them "
                   f"shared; {status['completion_tokens']} written"),
        ("memory", f"{size_text(memory['rss_bytes'])} of "
                   f"{size_text(memory['planned_bytes'])} planned"),
        ("since", time.strftime("%Y-%m-%d %H:%M", time.localtime(status["since"]))),
    )  # fmt: skip
    others = [
        (
            f"also {entry['name']}",
            f"loaded, {entry['running']} computed, {entry['waiting']} waiting, "
            f"{size_text(entry['planned_bytes'])} planned"
            if entry["loaded"]
            else "not loaded",
        )
        for entry in status.get("models", ())[1:]
    ]
    for name, text in (*rows, *others):
        console.answer(f"{name:8} {text}")
