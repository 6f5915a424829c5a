"""How the next token is drawn: the settings, each with all that is said of it in one row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from infer_os.fields import (
    MOST_INT32,
    Kind,
    check_fields,
    number,
    pairs,
    text,
    whole,
    whole_where,
)
from infer_os.sizes import read_number, read_whole

from .errors import SettingsError

Value = TypeVar("Value")

#: llama.cpp's sign for a random seed.
RANDOM_SEED = -1
# the largest 32-bit value is llama.cpp's own sign for "choose one"
_MOST_SEED = 0xFFFFFFFF - 1
#: The version of mirostat that there is.
MIROSTAT = 2
_MOST_BIAS = 100


@dataclass(frozen=True, slots=True)
class SamplerSetting:
    """A row of the sampler's settings: what is said of a field of :class:`SamplingSettings`.

    Args:
        name: the field's.
        type: ``float``, ``int``, ``str``, or ``tuple`` for biases; it may be None as well.
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

    @property
    def is_number(self) -> bool:
        """Whether it is a number."""
        return self.type in (int, float)

    @property
    def noun(self) -> str:
        """What a value is that is typed."""
        return BIASES_NOUN if self.type is tuple else self.kind.noun

    def read(self, typed: str) -> Any:
        """The value of what was typed; its range is not checked.

        Raises:
            ValueError: it is no number.
            SettingsError: these are no biases.
        """
        return _READERS.get(self.type, str)(typed)

    def typed(self, value: Any) -> str:
        """A value as it would be typed."""
        if self.type is tuple:
            return ",".join(f"{token}={bias}" for token, bias in value)
        return str(value)


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


def _from_to(low: float, high: float, expected: str = "") -> Kind:
    return number(lambda value: low <= value <= high, expected or f"{low} to {high}")


#: How biases are typed.
BIASES_NOUN = "tokens with numbers, such as 11=-100,198=2.5"


def read_biases(given: str | Mapping[str, Any]) -> tuple[tuple[int, Any], ...]:
    """Biases as they are typed, ``ID=X,ID=X``, or as JSON has them, ``{"ID": X}``.

    The numbers of a mapping are taken as they are: a :class:`SamplingSettings` checks them.

    Raises:
        SettingsError: a token or a typed number is none.
    """
    items: Any = (
        given.items()
        if isinstance(given, Mapping)
        else (part.strip().partition("=")[::2] for part in given.split(",") if given.strip())
    )
    found = []
    for key, value in items:
        token = str(key).strip()
        if not (token.isascii() and token.isdecimal() and len(token) <= len(str(MOST_INT32))):
            raise SettingsError(
                f"{str(key)[:60]!r} is no token: expected {BIASES_NOUN}", "logit_bias"
            )
        try:
            found.append(
                (int(token), read_number(value.strip()) if isinstance(value, str) else value)
            )
        except ValueError:
            raise SettingsError(
                f"{token}={value[:60]}: expected {BIASES_NOUN}", "logit_bias"
            ) from None
    return tuple(found)


_READERS: dict[type, Callable[[str], Any]] = {
    int: read_whole, float: read_number, tuple: read_biases
}  # fmt: skip


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
        "T", "0 always takes the likeliest token; higher values vary more.",
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
        "N", "How many recent tokens the repeat, presence and frequency penalties count.",
    )  # fmt: skip
    presence_penalty: float = _setting(
        0.0, _from_to(-100, 100, "-100 to 100; 0 is off"),
        "X", "Subtract from the logit of every recent token; 0 is off.",
    )  # fmt: skip
    frequency_penalty: float = _setting(
        0.0, _from_to(-100, 100, "-100 to 100; 0 is off"),
        "X", "Subtract from a recent token's logit for each time it occurred; 0 is off.",
    )  # fmt: skip
    dry_multiplier: float = _setting(
        0.0, _from_to(0, 100, "0 (off) to 100"),
        "X", "DRY: subtract from what would repeat a passage; 0 is off.",
    )  # fmt: skip
    dry_base: float = _setting(
        1.75, _from_to(1, 100), "X", "DRY: the factor for each further repeated token.",
    )  # fmt: skip
    dry_allowed_length: int = _setting(
        2, whole(1, MOST_INT32), "N", "DRY: how long a passage may be repeated freely.",
    )  # fmt: skip
    dry_penalty_last_n: int = _setting(
        4096, whole(0, MOST_INT32, f"0 (off) to {MOST_INT32}"),
        "N", "DRY: how many recent tokens are searched.",
    )  # fmt: skip
    no_repeat_ngram: int = _setting(
        0, whole(0, MOST_INT32, f"0 (off) to {MOST_INT32}"),
        "N", "Never write the same N tokens twice, prompt included; 0 is off.",
    )  # fmt: skip
    min_tokens: int = _setting(
        0, whole(0, MOST_INT32, f"0 (off) to {MOST_INT32}"),
        "N", "Do not end the text before N tokens; 0 is off.",
    )  # fmt: skip
    top_n_sigma: float = _setting(
        0.0, _from_to(0, 1000, "0 (off) to 1000"),
        "N", "Keep logits within N standard deviations of the largest; 0 is off.", off=0,
    )  # fmt: skip
    typical_p: float = _setting(
        1.0, number(lambda p: 0 < p <= 1, "more than 0, at most 1 (off)"),
        "P", "Draw from the most typical that sum to P; 1 is off.", off=1,
    )  # fmt: skip
    xtc_probability: float = _setting(
        0.0, _from_to(0, 1, "0 (off) to 1"),
        "P", "XTC: how often the likeliest are left out; 0 is off.",
    )  # fmt: skip
    xtc_threshold: float = _setting(
        0.1, number(lambda p: 0 < p <= 0.5, "more than 0, at most 0.5"),
        "P", "XTC: of tokens at least this likely, only the unlikeliest stays.",
    )  # fmt: skip
    dynatemp_range: float = _setting(
        0.0, _from_to(0, 1000, "0 (off) to 1000"),
        "R", "Let the temperature vary by R, lower where the model is sure; 0 is off.",
    )  # fmt: skip
    dynatemp_exponent: float = _setting(
        1.0, _from_to(0.01, 100), "X", "How the dynamic temperature grows with the entropy.",
    )  # fmt: skip
    mirostat: int = _setting(
        0, whole_where(lambda version: version in (0, MIROSTAT), f"0 (off) or {MIROSTAT}"),
        "N", "2: draw with mirostat 2, which replaces the filters; 0 is off.",
    )  # fmt: skip
    mirostat_tau: float = _setting(
        5.0, _from_to(0.01, 100), "X", "Mirostat: the surprise aimed at, in bits.",
    )  # fmt: skip
    mirostat_eta: float = _setting(
        0.1, _from_to(0, 1), "X", "Mirostat: how fast it adapts.",
    )  # fmt: skip
    adaptive_target: float = _setting(
        -1.0, number(lambda p: p == -1 or 0 <= p <= 1, "-1 (off), or 0 to 1"),
        "P", "Adaptive-p: the probability that drawn tokens aim at; -1 is off.",
    )  # fmt: skip
    adaptive_decay: float = _setting(
        0.9, _from_to(0, 0.99), "X", "Adaptive-p: how slowly past tokens are forgotten.",
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
            lambda token, bias: 0 <= token <= MOST_INT32 and -_MOST_BIAS <= bias <= _MOST_BIAS,
            f"tokens with numbers from -{_MOST_BIAS} to {_MOST_BIAS}",
        ),
        "ID=X,...", "Add to the logits of single tokens, before anything else.", unset="none",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self, _SAMPLING, SettingsError)
        if self.seed == RANDOM_SEED:
            object.__setattr__(self, "seed", None)
        _check_constraint(self.constraints)
        self._check_mirostat()

    def _check_mirostat(self) -> None:
        """Mirostat takes the place of the filters: those that someone asked for are refused."""
        others = {
            "top_n_sigma": self.top_n_sigma > 0, "typical_p": self.typical_p < 1,
            "xtc_probability": self.xtc_probability > 0, "dynatemp_range": self.dynatemp_range > 0,
            "adaptive_target": self.adaptive_target >= 0,
        }  # fmt: skip
        if self.mirostat and (found := [name for name, is_on in others.items() if is_on]):
            raise SettingsError(
                f"{self.mirostat}: it takes the place of {', '.join(found)}; give one of them",
                "mirostat",
            )

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
        """Whether the logits of recent tokens are changed."""
        some = self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return some and self.repeat_last_n > 0

    @property
    def dries(self) -> bool:
        """Whether repeated passages are made less likely (DRY)."""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n > 0

    @property
    def history(self) -> int:
        """How many recent tokens the penalties look at."""
        return max(
            self.repeat_last_n if self.penalizes else 0,
            self.dry_penalty_last_n if self.dries else 0,
        )

    @property
    def bars(self) -> bool:
        """Whether there are tokens that must not come next."""
        return bool(self.constraint or self.no_repeat_ngram or self.min_tokens)

    @property
    def takes_the_models_likeliest(self) -> bool:
        """Whether the next token is the one with the largest logit, whatever came before."""
        changes = self.penalizes or self.dries or self.bars or self.logit_bias
        return self.temperature == 0 and not changes

    @property
    def adapts(self) -> bool:
        """Whether draws depend on how likely the drawn tokens were."""
        return self.temperature > 0 and (self.mirostat > 0 or self.adaptive_target >= 0)

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
    name for name, row in SAMPLER_SETTINGS.items() if row.option and row.is_number
)
