"""An answer from a server that runs, in the place of a model that is loaded here."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import typer

from ..runtime.settings import RANDOM_SEED, SAMPLER_SETTINGS, SamplingSettings, StopSettings
from ..terminal import console
from .serving import api_key

AskedServer = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL",
        help="Ask a running server (infer-os serve) that has MODEL instead of loading it here; if "
        "it needs a key, put it into INFER_OS_API_KEY.",
        show_default=False,
    ),
]  # fmt: skip


def answer_from_server(
    invocation: typer.Context,
    server: str,
    request: tuple[str, dict[str, Any]],
    sampling: SamplingSettings,
    stops: StopSettings,
    *,
    used: frozenset[str],
) -> None:
    """Print what a server writes, and what it cost; Ctrl-C stops the server too.

    Args:
        invocation: which options were given. Of the sampler's and the stops', only those are sent:
            the others are as the server's own options say.
        server: its address.
        request: a path, and the rest of the body.
        sampling: the sampler's options.
        stops: the stops' options.
        used: parameters of the command that ``request`` is made of.

    Raises:
        SettingsError: an option that a server cannot follow, or one that it refuses.
        ServerFailure: it does not answer as it should.
        typer.Exit: 130, after Ctrl-C.
    """
    from ..serve.client import RemoteAnswer, stream_answer

    path, body = request
    body = {**body, **given_fields(invocation, sampling, stops, used=used)}
    state, stopped, is_begun = RemoteAnswer(), False, False
    try:
        with closing(stream_answer(server, api_key(None), path, body, state)) as pieces:
            for piece in pieces:
                console.answer(piece, end="")
                is_begun = is_begun or bool(piece)
    except KeyboardInterrupt:
        stopped = True
    finally:
        # an error of a request that wrote nothing leaves stdout as it is
        if is_begun or state.finish_reason or stopped:
            console.answer("")
    if stopped:
        raise typer.Exit(130)
    console.note(
        f"{state.completion_tokens} tokens from {server}, after {state.prompt_tokens} of the prompt"
    )
    if state.finish_reason == "length":
        console.note("the text was cut off at its limit; -n raises that")


def given_fields(
    invocation: typer.Context, sampling: SamplingSettings, stops: StopSettings, *,
    used: frozenset[str],
) -> dict[str, Any]:  # fmt: skip
    """The options of the sampler and the stops that were given, as fields of a request.

    Raises:
        SettingsError: another option was given, which is not among the parameters ``used``.
    """
    given = _given_options(invocation)
    _check_options(given, used)
    return _fields(given, sampling, stops)


def _given_options(invocation: typer.Context) -> dict[str, str]:
    """The parameters that the command line has, and how each is spelled."""
    found = {}
    for parameter in invocation.command.params:
        source = invocation.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = max(parameter.opts, key=len)
    return found


_STOPS = ("max_tokens", "stop")


def _check_options(given: dict[str, str], used: frozenset[str]) -> None:
    from ..runtime.errors import SettingsError

    known = used | SAMPLER_SETTINGS.keys() | {"server", *_STOPS}
    if lost := [option for name, option in given.items() if name not in known]:
        raise SettingsError(f"{', '.join(lost)}: a server cannot follow that; drop it, or --server")


def _fields(
    given: dict[str, str], sampling: SamplingSettings, stops: StopSettings
) -> dict[str, Any]:
    """The options as fields of a request; the server refuses those that it does not know."""
    values = {name: getattr(sampling, name) for name in SAMPLER_SETTINGS if name in given}
    if "seed" in values and values["seed"] is None:
        values["seed"] = RANDOM_SEED
    if "logit_bias" in values:
        values["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    values |= {"max_tokens": stops.max_tokens} if "max_tokens" in given else {}
    return values | ({"stop": list(stops.strings)} if "stop" in given else {})
