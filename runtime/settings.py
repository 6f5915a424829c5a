"""Settings of a run, as records that check themselves; the sampler's are a file of their own."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from infer_os.fields import check_fields, flag, members, records, text, texts, whole, whole_where
from infer_os.models.styles import STYLE_NAMES

from .errors import SettingsError
from .sampling_settings import CONSTRAINTS as CONSTRAINTS
from .sampling_settings import RANDOM_SEED as RANDOM_SEED
from .sampling_settings import SAMPLER_NUMBERS as SAMPLER_NUMBERS
from .sampling_settings import SAMPLER_SETTINGS as SAMPLER_SETTINGS
from .sampling_settings import SamplerSetting as SamplerSetting
from .sampling_settings import SamplingSettings as SamplingSettings

#: llama.cpp's sign for an unlimited number of tokens.
NO_LIMIT = -1
#: Of a size that is an option.
MOST_BYTES = (1 << 63) - 1


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
    EMBEDDING = "embeddings"
    SEARCH = "beam search"
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
#: What is said where no adapter is to be used, so that none can be called that.
NO_ADAPTER = "off"
_ADAPTER_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA adapter to load with a model: its name, its file of ``n_bytes``, and its scale.

    Raises:
        SettingsError: a name that cannot be one.
    """

    name: str
    path: Path
    scale: float
    n_bytes: int

    def __post_init__(self) -> None:
        check_adapter_name(self.name)


def check_adapter_name(name: str) -> None:
    """Refuse what cannot be the name of an adapter.

    Raises:
        SettingsError: it cannot.
    """
    if not _ADAPTER_NAME.fullmatch(name) or name == NO_ADAPTER:
        raise SettingsError(
            f"{name!r}: expected a name of letters, digits and '-_.', and not {NO_ADAPTER!r}",
            "adapter",
        )


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
    "adapters": records(AdapterFile),
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
    ``adapters`` are loaded with it.

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
    adapters: tuple[AdapterFile, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, _ENGINE, SettingsError)
        if self.kv.lower() not in ("", "auto"):
            from .kv.schedule import parse_spec  # settings alone load no C

            parse_spec(self.kv)
        names = [adapter.name for adapter in self.adapters]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SettingsError(f"{twice!r} is the name of two; write NAME= in front", "adapter")
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
