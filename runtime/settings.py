"""Settings of a run, as records that check themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from infer_os.fields import (
    MOST_INT32,
    Kind,
    check_fields,
    flag,
    members,
    number,
    pairs,
    text,
    texts,
    whole,
    whole_where,
)
from infer_os.models.styles import STYLE_NAMES

from .errors import SettingsError

Value = TypeVar("Value")

#: llama.cpp's signs for a random seed and for an unlimited number of tokens.
RANDOM_SEED = NO_LIMIT = -1
# the largest 32-bit value is llama.cpp's own sign for "choose one"
_MOST_SEED = 0xFFFFFFFF - 1
#: Of a size that is an option.
MOST_BYTES = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SamplerSetting:
    """A row of the sampler's settings: what is said of a field of :class:`SamplingSettings`.

    Args:
        name: the field's.
        type: ``float``, ``int``, ``str`` or ``tuple``, whether or not it may be None as well.
        default: its default.
        kind: what it may be.
        metavar: what follows its option; "" for a field that has none, and is Python's alone.
        help: that of its option.
        off: the value with which llama.cpp's filter of this name is left out.
        unset: a word for a default that is no value: None, or no text.
        default_text: its default in the option's help, where that is no value.
    """

    name: str
    type: type
    default: float | str | None
    kind: Kind
    metavar: str
    help: str
    off: float | None
    unset: str
    default_text: str

    @property
    def option(self) -> str:
        """Its option; "" where it has none."""
        return f"--{self.name.replace('_', '-')}" if self.metavar else ""

    @property
    def is_constraint(self) -> bool:
        """Whether it is something that the text must follow."""
        return self.type is str


def _setting(
    default: Value,
    kind: Kind,
    metavar: str,
    help: str,
    *,
    off: float | None = None,
    unset: str = "",
    default_text: str = "",
) -> Value:
    """A field with what its row says of it."""
    made: Value = field(default=default, metadata={
        "kind": kind, "metavar": metavar, "help": help, "off": off, "unset": unset,
        "default_text": default_text,
    })  # fmt: skip
    return made


def _check_constraint(given: tuple[tuple[str, str], ...]) -> None:
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(kind for kind, _ in given)}: give one of them")
    for kind, value in given:
        from infer_os.native.errors import GrammarError
        from infer_os.native.grammar import compiled  # only needed here: settings load nothing

        try:
            compiled(kind, value)
        except GrammarError as error:
            raise SettingsError(f"cannot be used: {error}", kind) from None


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is drawn. What is said of a field here is all there is to say of it.

    Its option, its key in a record of a batch, its name for ``/set`` and its line in
    docs/sampling.md are made of :data:`SAMPLER_SETTINGS`. At most one of ``grammar`` (GBNF),
    ``json_schema`` (its text) and ``regex`` is what all of the text must follow; empty for none.
    A ``seed`` of None or -1 is a random one.

    Raises:
        SettingsError: a value of another type, or out of its range.
    """

    # llama.cpp computes in float32 and counts in int32: what those cannot hold is refused
    temperature: float = _setting(
        0.8, number(lambda t: t == 0 or 1e-3 <= t <= 1e3, "0 (the likeliest), or 0.001 to 1000"),
        "T", "0 takes the likeliest token; higher: bolder.",
    )  # fmt: skip
    top_k: int = _setting(
        40, whole(0, MOST_INT32, f"0 (off) to {MOST_INT32}"),
        "K", "Draw from the K likeliest; 0 is off.", off=0,
    )  # fmt: skip
    top_p: float = _setting(
        0.95, number(lambda p: 0 < p <= 1, "more than 0, at most 1 (off)"),
        "P", "Draw from the likeliest that sum to P; 1 is off.", off=1,
    )  # fmt: skip
    min_p: float = _setting(
        0.05, number(lambda p: 0 <= p < 1, "0 (off) to less than 1"),
        "P", "Drop tokens below P times the likeliest's probability; 0 is off.", off=0,
    )  # fmt: skip
    repeat_penalty: float = _setting(
        1.0, number(lambda r: 0.001 <= r <= 1000, "0.001 to 1000; 1 is off"),
        "R", "Make recent tokens less likely; 1 is off.",
    )  # fmt: skip
    repeat_last_n: int = _setting(
        64, whole(0, MOST_INT32, f"0 (off) to {MOST_INT32}"),
        "", "How many recent tokens the repeat penalty counts.",
    )  # fmt: skip
    seed: int | None = _setting(
        None, whole(RANDOM_SEED, _MOST_SEED, f"0 to {_MOST_SEED}, or -1 (a random one)").or_none(),
        "S", "Makes a run repeatable; -1 picks one at random.",
        unset="random", default_text="a random one",
    )  # fmt: skip
    grammar: str = _setting(
        "", text(), "FILE|TEXT",
        "A grammar (GBNF) that the text must follow; see docs/constraints.md.", unset="none",
    )  # fmt: skip
    json_schema: str = _setting(
        "", text(), "FILE|TEXT", "A JSON schema that the text must follow.", unset="none"
    )
    regex: str = _setting(
        "", text(), "TEXT", "A regular expression that the whole text must match.", unset="none"
    )
    logit_bias: tuple[tuple[int, float], ...] = _setting(
        (), pairs(
            lambda token, bias: 0 <= token <= MOST_INT32 and -100 <= bias <= 100,
            "tokens with numbers from -100 to 100",
        ),
        "", "What is added to the logits of single tokens, before anything else.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self, _SAMPLING, SettingsError)
        if self.seed == RANDOM_SEED:
            object.__setattr__(self, "seed", None)
        _check_constraint(self.constraints)

    @property
    def constraints(self) -> tuple[tuple[str, str], ...]:
        """What the text must follow: the given settings' names and texts."""
        given = ((name, getattr(self, name)) for name in CONSTRAINTS)
        return tuple((kind, text) for kind, text in given if text)

    @property
    def constraint(self) -> tuple[str, str] | None:
        """The one that is given, or None."""
        return next(iter(self.constraints), None)

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens are made less likely."""
        return self.repeat_penalty != 1 and self.repeat_last_n > 0

    def chosen_seed(self) -> int:
        """The seed, or a fresh random one."""

        if self.seed is not None:
            return self.seed
        return int.from_bytes(os.urandom(8), "little") % 0xFFFFFFFF


def _sampler_settings() -> Iterator[SamplerSetting]:
    hints = get_type_hints(SamplingSettings)
    for each in fields(SamplingSettings):
        hint = hints[each.name]
        kinds = (tuple,) if get_origin(hint) is tuple else get_args(hint) or (hint,)
        kind = next(kind for kind in kinds if kind is not NoneType)
        default: Any = each.default
        yield SamplerSetting(each.name, kind, default, **each.metadata)


#: Every setting of the sampler, by name, in the order of the options.
SAMPLER_SETTINGS = {row.name: row for row in _sampler_settings()}
_SAMPLING = {name: row.kind for name, row in SAMPLER_SETTINGS.items()}
#: Those that say what the text must follow.
CONSTRAINTS = tuple(name for name, row in SAMPLER_SETTINGS.items() if row.is_constraint)
#: Those that are numbers and have an option.
SAMPLER_NUMBERS = tuple(
    name for name, row in SAMPLER_SETTINGS.items() if row.option and not row.is_constraint
)


class Extra(Enum):
    """What a process does apart from running a model; :mod:`.plan.use` has the bytes.

    A command's work is known before its model is loaded, and is part of its plan.
    """

    CONVERSION = "conversion"
    DOWNLOAD = "download, conversion"
    SESSION = "session file"
    TERMINAL = "line editor"
    PARQUET = "Parquet"
    CONSTRAINT = "grammar"
    BENCH = "benchmark"
    EVALUATION = "evaluation"
    SERVER = "server"
    SCORING = "scoring"
    REPORT = "report"
    #: The process that renders it, if the model's file has one.
    TEMPLATE = "chat template"

    @property
    def converts(self) -> bool:
        """Whether it makes the file first."""
        return self in (Extra.CONVERSION, Extra.DOWNLOAD)


#: Most guesses of a round of speculative decoding.
MOST_GUESSES = 31
#: ``--load``; :mod:`.pages` describes the trade-offs.
LOADS = ("mmap", "fast", "locked", "direct")
MOST_THREADS = 512
_ENGINE = {
    "context": whole_where(lambda n: n == 0 or 8 <= n <= 1 << 20, "8 to 1048576 tokens"),
    "load": text(lambda load: load in LOADS, ", ".join(LOADS)),
    "threads": whole(0, MOST_THREADS, f"1 to {MOST_THREADS}"),
    "kv": text(),
    "kv_budget": whole(0, MOST_BYTES, "a number of bytes"),
    "memory": whole(0, MOST_BYTES, "a number of bytes"),
    "prefetch": flag(),
    "drop_pages": flag(),
    "draft": text(),
    "draft_max": whole(1, MOST_GUESSES),
    "native": flag(),
    "extras": members(Extra),
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is loaded. ``context`` 0 takes what it was trained for, at most 4096 tokens.

    ``kv`` is empty (F16 throughout), ``auto`` or a SPEC of :mod:`.kv.schedule`; ``kv_budget`` is in
    bytes, 0 for none. ``memory`` is the limit for everything in bytes, 0 for what is available now.
    ``draft`` is ``none``, ``lookup`` or the GGUF file of a draft model, of whose guesses at most
    ``draft_max`` are verified at once.
    ``native`` uses our own kernels where they are faster than llama.cpp's. ``threads`` 0
    takes one per usable core. ``extras`` is what else the process does, for the plan.

    Raises:
        SettingsError: a value of another type or out of its range, or two that do not go together.
    """

    context: int = 0
    load: str = "mmap"
    threads: int = 0
    kv: str = ""
    kv_budget: int = 0
    memory: int = 0
    prefetch: bool = False
    drop_pages: bool = False
    draft: str = "none"
    draft_max: int = 6
    native: bool = True
    extras: frozenset[Extra] = frozenset()

    def __post_init__(self) -> None:
        check_fields(self, _ENGINE, SettingsError)
        if self.kv.lower() not in ("", "auto"):
            from .kv.schedule import parse_spec  # settings alone load no C

            parse_spec(self.kv)
        for option, given in (("--prefetch", self.prefetch), ("--drop-pages", self.drop_pages)):
            if given and self.load == "direct":
                raise SettingsError(
                    f"{option} has no effect with --load direct, which reads past the page cache; "
                    "drop one of them"
                )

    @property
    def n_outputs(self) -> int:
        """Rows of logits of a batch: those of a round of guesses, or one."""
        return 1 if self.draft == "none" else self.draft_max + 1

    @property
    def n_threads(self) -> int:
        """Threads: as requested, else one per usable core."""
        from infer_os.native.processors import usable_cores  # settings alone load no C

        return self.threads or usable_cores()


_STOPS = {
    "max_tokens": whole_where(
        lambda n: n >= 1 or n == NO_LIMIT, "1 or more, or -1 (until the context ends)"
    ),
    "strings": texts(all, "none of them empty"),
}


@dataclass(frozen=True, slots=True)
class StopSettings:
    """When a generation ends, apart from the model's own end of text.

    After ``max_tokens`` (-1: only the context limits them); before one of ``strings``.

    Raises:
        SettingsError: a value of another type, or out of its range.
    """

    max_tokens: int = 128
    strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, _STOPS, SettingsError)

    @property
    def limit(self) -> int:
        """The most tokens, as a number to count against."""
        return sys.maxsize if self.max_tokens == NO_LIMIT else self.max_tokens


#: How a conversation is drawn, and how long a reply may be, where nothing else is asked for.
CHAT_SAMPLING = SamplingSettings(repeat_penalty=1.1)
CHAT_STOPS = StopSettings(256)


def check_style(style: str) -> None:
    """Refuse an unknown style; an empty one is the model's own.

    Raises:
        SettingsError: there is no such style.
    """
    if style and style not in STYLE_NAMES:
        raise SettingsError(f"{style}: expected one of {', '.join(STYLE_NAMES)}", "style")
