"""``infer-os models``: list, show, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from ..sizes import size_text
from ..terminal import console
from . import completing, options
from .index import MANNERS, SUMMARIES

app = typer.Typer(help=SUMMARIES["models"], add_completion=False, **MANNERS)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A catalog name (gpt-j-6B), a hub id (EleutherAI/gpt-j-6B), or a folder.",
        show_default=False,
        autocompletion=completing.model_names,
    ),
]


Search = Annotated[
    str,
    typer.Option(
        "--search", metavar="TEXT",
        help="Only models with these words in their hub id, family or style.",
        show_default="all",
    ),
]  # fmt: skip


@app.callback(invoke_without_command=True)
def models(context: typer.Context, search: Search = "", as_json: options.Json = False) -> None:
    """List the known models: what each needs, what is in the cache, what fits this machine."""
    if context.invoked_subcommand is None:
        list_(search, as_json)
    elif search:
        from ..runtime.errors import SettingsError

        command = context.invoked_subcommand
        raise SettingsError(f"--search: {command} takes none; put it after models, or models list")
    elif as_json:
        from ..runtime.errors import SettingsError

        command = context.invoked_subcommand
        raise SettingsError(f"--json: put it after the command: models {command} --json")


@app.command("list")
def list_(search: Search = "", as_json: options.Json = False) -> None:
    """List the catalog and the cache: parameters, memory per type, what fits this machine."""
    from ..store.listing import list_models
    from ..terminal import render_models

    found = list_models(search)
    if as_json:
        console.answer_json(render_models.list_json(found))
    else:
        render_models.show_list(found)


@app.command()
def show(name: Name, as_json: options.Json = False) -> None:
    """Show everything known about a model: geometry, draft partner, style, sizes, cached files."""
    from ..store.listing import show_model
    from ..terminal import render_models

    details = show_model(name)
    if as_json:
        console.answer_json(render_models.details_json(details))
    else:
        render_models.show_details(details)


@app.command()
def rm(
    name: Name,
    type: Annotated[
        str,
        typer.Option(
            "--type", metavar="T", help="Only the conversion to T.", show_default="everything"
        ),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Remove a model and its downloads from the cache. What is in use stays."""
    from ..store.removal import remove_model

    title, freed = remove_model(name, type)
    if as_json:
        console.answer_json({"model": title, "freed_bytes": freed})
    else:
        console.note(f"{title}: removed, {size_text(freed)} freed")
