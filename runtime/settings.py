"""Settings of a run, as records that check themselves."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from infer_os.models.styles import STYLE_NAMES

from .errors import SettingsError


def _check(good: bool, option: str, value: object, expected: str) -> None:
    if not good:
        raise SettingsError(f"{option} {value}: expected {expected}")


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is drawn. A ``temperature`` of 0 takes the likeliest.

    ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repeat_penalty`` 1 switch a filter off. ``grammar``
    is GBNF that the text must follow; empty for none.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    grammar: str = ""

    def __post_init__(self) -> None:
        # llama.cpp computes in float32 and counts in int32: what those cannot hold is refused
        good = self.temperature == 0 or 1e-3 <= self.temperature <= 1e3
        _check(good, "--temperature", self.temperature, "0 (the likeliest), or 0.001 to 1000")
        _check(0 <= self.top_k < 1 << 31, "--top-k", self.top_k, "0 (off) to 2147483647")
        _check(0 < self.top_p <= 1, "--top-p", self.top_p, "more than 0, at most 1 (off)")
        _check(0 <= self.min_p < 1, "--min-p", self.min_p, "0 (off) to less than 1")
        good = 0.001 <= self.repeat_penalty <= 1000
        _check(good, "--repeat-penalty", self.repeat_penalty, "0.001 to 1000; 1 is off")
        good = 0 <= self.repeat_last_n < 1 << 31
        _check(good, "repeat_last_n", self.repeat_last_n, "0 (off) to 2147483647")
        # the largest value is llama.cpp's own sign for "choose one"
        good = self.seed is None or 0 <= self.seed < 0xFFFFFFFF
        _check(good, "--seed", self.seed, f"0 to {0xFFFFFFFF - 1}")

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens are made less likely."""
        return self.repeat_penalty != 1 and self.repeat_last_n > 0

    def chosen_seed(self) -> int:
        """The seed, or a fresh random one."""
        return secrets.randbelow(0xFFFFFFFF) if self.seed is None else self.seed


#: Guesses that a round of speculative decoding can have.
MOST_GUESSES = 31
#: ``--load``; :mod:`.loading` says what each trades.
LOADS = ("mmap", "fast", "locked", "direct")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is loaded. ``context`` 0 takes what it was trained for, at most 4096 tokens.

    ``kv`` is empty (F16 throughout), ``auto`` or a SPEC of :mod:`.kv_schedule`; ``kv_budget`` is in
    bytes, 0 for none. ``memory`` is what everything may take in bytes, 0 for what there is now.
    ``draft`` is ``none``, ``lookup`` or the GGUF file of a draft model, of whose guesses at most
    ``draft_max`` are verified at once.
    ``native`` lets our own kernels compute what they compute faster than llama.cpp's.
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

    def __post_init__(self) -> None:
        good = 1 <= self.draft_max <= MOST_GUESSES
        _check(good, "--draft-max", self.draft_max, f"1 to {MOST_GUESSES}")
        good = self.context == 0 or 8 <= self.context <= 1 << 20
        _check(good, "--context", self.context, "8 to 1048576 tokens")
        _check(self.load in LOADS, "--load", self.load, ", ".join(LOADS))
        _check(self.memory >= 0, "--memory", self.memory, "a size such as 12G")
        for option, given in (("--prefetch", self.prefetch), ("--drop-pages", self.drop_pages)):
            if given and self.load == "direct":
                raise SettingsError(
                    f"{option} has no effect with --load direct, which reads past the page cache; "
                    "drop one of them"
                )
        _check(0 <= self.threads <= 512, "--threads", self.threads, "1 to 512")

    @property
    def n_outputs(self) -> int:
        """Rows of logits of a batch: of a round of guesses, or one."""
        return 1 if self.draft == "none" else self.draft_max + 1

    @property
    def n_threads(self) -> int:
        """Threads: as asked, else one per usable core."""
        from infer_os.native.processors import usable_cores  # settings alone load no C

        return self.threads or usable_cores()


@dataclass(frozen=True, slots=True)
class StopSettings:
    """When a generation ends, besides the model's own end of text."""

    max_tokens: int = 128
    strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "--max-tokens", self.max_tokens, "1 or more")
        _check(all(self.strings), "--stop", '""', "a text that is not empty")


def check_style(style: str) -> None:
    """Find a style that no model has; an empty one is the model's own.

    Raises:
        SettingsError: there is no such style.
    """
    if style and style not in STYLE_NAMES:
        raise SettingsError(f"--style {style}: expected one of {', '.join(STYLE_NAMES)}")
