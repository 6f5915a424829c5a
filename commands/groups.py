"""Groups of options, passed to a command as the settings record that they make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ..runtime.batch.settings import BatchSettings
from ..runtime.sampling_settings import read_biases
from ..runtime.scoring.settings import ScoringSettings
from ..runtime.settings import (
    CONSTRAINTS,
    EngineSettings,
    Extra,
    SamplingSettings,
    StopSettings,
)
from ..serve.settings import ServeSettings
from ..store.wish import ModelWish
from . import options, scoring_options
from .constraints import constraint_texts
from .converting import Conversion, conversion
from .serving import Seats, door, seats
from .talk import TalkSettings
from .typed_numbers import count_option, parallel_option, size_option

Command = TypeVar("Command", bound=Callable[..., Any])


def _model(
    model: options.Model,
    type: options.ModelType = "",
    lora: options.Lora = None,
    adapter: options.Adapter = None,
) -> ModelWish:
    return ModelWish(model, type, tuple(lora or ()), tuple(adapter or ()))


def _talk(
    system: options.System = "",
    style: options.Style = "",
    session: options.SessionFile = None,
) -> TalkSettings:
    return TalkSettings(system, style, session)


def _sampling(**given: Any) -> SamplingSettings:
    constraints = {name: given.pop(name) for name in CONSTRAINTS}
    biases = read_biases(given.pop("logit_bias") or "")
    return SamplingSettings(**given, logit_bias=biases, **constraint_texts(constraints))


def _stops(max_tokens: options.MaxTokens = 128, stop: options.Stop = None) -> StopSettings:
    if "" in (stop or ()):
        from ..runtime.errors import SettingsError

        raise SettingsError("--stop: is empty")
    return StopSettings(max_tokens, tuple(stop or ()))


def _engine(
    context: options.Context = None,
    kv: options.Kv = "",
    kv_budget: options.KvBudget = "",
    load: options.Load = "mmap",
    memory: options.Memory = "",
    prefetch: options.Prefetch = False,
    drop_pages: options.DropPages = False,
    draft: options.Draft = "none",
    draft_max: options.DraftMax = 6,
    threads: options.Threads = None,
    no_native: options.NoNative = False,
) -> EngineSettings:
    return EngineSettings(
        count_option("context", context), load, count_option("threads", threads), kv,
        size_option("--kv-budget", kv_budget),
        size_option("--memory", memory), prefetch, drop_pages, draft, draft_max, not no_native,
    )  # fmt: skip


def _batch(
    parallel: options.Parallel = "auto",
    logprobs: options.Logprobs = 0,
    prefix: options.Prefix = None,
    system: options.BatchSystem = "",
    style: options.Style = "",
    beams: options.Beams = 0,
) -> BatchSettings:
    text = _prefix(prefix) if prefix else ""
    return BatchSettings(parallel_option(parallel), logprobs, text, system, style, beams)


def _scoring(
    parallel: scoring_options.ScoreParallel = "auto", totals: scoring_options.Totals = False
) -> ScoringSettings:
    return ScoringSettings(parallel_option(parallel), totals)


def _prefix(file: Path) -> str:
    from ..runtime.errors import SettingsError
    from ..runtime.prompt import read_file

    try:
        text = read_file(file).decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: is not UTF-8 text") from None
    # line ends of a text file
    return text.replace("\r\n", "\n").replace("\r", "\n")


_BUILDERS: dict[Any, Callable[..., Any]] = {
    ModelWish: _model, TalkSettings: _talk, SamplingSettings: _sampling, StopSettings: _stops,
    EngineSettings: _engine, BatchSettings: _batch, Conversion: conversion,
    Seats: seats, ServeSettings: door,
    ScoringSettings: _scoring,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Group:
    """One record's options: ``options`` are the parameters that ``build`` takes by name."""

    build: Callable[..., Any]
    options: tuple[inspect.Parameter, ...]


def grouped(*without: str, **defaults: Any) -> Callable[[Command], Command]:
    """Let a command take settings records: each is spelled as the options that make it.

    Args:
        without: single options that mean nothing to this command.
        defaults: of single options, where this command differs from the others.
    """

    def expand(command: Command) -> Command:
        unused = {*defaults, *without}
        parameters: list[inspect.Parameter] = []
        groups: dict[str, _Group] = {}
        for parameter in _parameters(command):
            build = _BUILDERS.get(parameter.annotation)
            if build is None:
                parameters.append(parameter)
                continue
            own = options.SAMPLER_PARAMETERS if build is _sampling else _parameters(build)
            singles = tuple(
                single.replace(default=defaults.get(single.name, single.default))
                for single in own
                if single.name not in without
            )
            unused -= {single.name for single in own}
            groups[parameter.name] = _Group(build, singles)
            parameters.extend(singles)
        if unused:
            raise TypeError(f"{command.__name__}: no option {', '.join(sorted(unused))}")

        @functools.wraps(command)
        def call(**given: Any) -> Any:
            records = {
                name: group.build(
                    **{single.name: given.pop(single.name) for single in group.options}
                )
                for name, group in groups.items()
            }
            return command(**given, **_planned(records))

        # typer reads the options from these two
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call  # type: ignore[return-value]

    return expand


def _planned(records: dict[str, Any]) -> dict[str, Any]:
    """The records, with the plan's share of the options moved to the engine's settings."""
    if not any(isinstance(r, SamplingSettings) and r.constraint for r in records.values()):
        return records
    return {
        name: replace(record, extras=record.extras | {Extra.CONSTRAINT})
        if isinstance(record, EngineSettings)
        else record
        for name, record in records.items()
    }


@functools.cache  # the same records are options of many commands
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Its parameters with resolved annotations, keyword-only so that any order is valid."""
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
    )
