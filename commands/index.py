"""The commands in the order of ``--help``; each is imported when it is asked for.

Importing them all, and reading the types of some two hundred options, costs more than the command
framework itself. So the list of commands is made of what stands here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Command, Context
    from typer._click.formatting import HelpFormatter

#: What is the same for every command of the program.
MANNERS: dict[str, Any] = {
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

#: The first line of each command's help, which the command's own docstring repeats.
SUMMARIES = {
    "run": "Run a model by its name: download, convert, answer.",
    "pull": "Download and convert a model into the cache; print its path.",
    "chat": "Chat with a model.",
    "generate": "Continue a prompt.",
    "batch": "Answer many prompts at once, each with one line of output.",
    "score": "Compute how likely texts are: one line of log-probabilities for each.",
    "embed": "Turn each text into a vector (an embedding), taken from the model's last layer.",
    "serve": "Answer requests over HTTP as OpenAI's API does, with a page to chat on.",
    "ps": "Show which models a server has loaded, and what it is doing.",
    "convert": "Convert a Hugging Face checkpoint to one quantized GGUF file.",
    "inspect": "Show the metadata and the tensors of a GGUF file.",
    "plan": "Show what a model will take, what fits, and what to choose.",
    "system": "Check this machine, and rank the known models on it.",
    "bench": "Measure speed and memory, with medians and quartiles.",
    "demo": "Convert the bundled model to Q8_0 and Q4_0, and compare them.",
    "eval": "Measure perplexity, and agreement with a reference.",
    "models": "List the known models: what each needs, and what is cached.",
}

#: Module and function of the commands that are not called as both are.
_PLACES = {"system": ("plan", "system"), "eval": ("evaluate", "evaluate")}


class Commands(Mapping[str, "Command"]):
    """The commands by name, imported when they are looked up."""

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)

    def __getitem__(self, name: str) -> Command:
        if name not in SUMMARIES:
            raise KeyError(name)
        file, function = _PLACES.get(name, (name, name))
        module = import_module(f".{file}", __package__)
        app: typer.Typer | None = getattr(module, "app", None)  # a group of commands has one
        if app is None:
            app = typer.Typer(add_completion=False, **MANNERS)
            app.command(name)(getattr(module, function))
        command = typer.main.get_command(app)
        command.name = name
        return command


class Program(TyperGroup):
    """The group of all commands, which lists them without importing them."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Context) -> list[str]:
        """List the names of the commands."""
        return list(SUMMARIES)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the part of ``--help`` about the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))
