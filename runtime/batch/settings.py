"""Settings of a batch, as a record that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from infer_os.fields import check_fields, text, whole

from ..errors import SettingsError
from ..settings import check_style

MOST_PARALLEL = 256
MOST_LOGPROBS = 100
MOST_SAMPLES = 1024

_BATCH = {
    "parallel": whole(0, MOST_PARALLEL, f"1 to {MOST_PARALLEL}, or auto"),
    "logprobs": whole(0, MOST_LOGPROBS, f"0 (none) to {MOST_LOGPROBS}"),
    "prefix": text(),
    "system": text(),
    "style": text(),
}


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How records are run: ``parallel`` sequences at once, 0 to measure how many are worth it.

    ``logprobs``: this many of the likeliest tokens are reported for each one drawn. ``prefix``
    precedes every prompt that is not a conversation; ``system`` opens every conversation that has
    no system message of its own. ``style`` frames conversations; empty for the model's own.

    Raises:
        SettingsError: a value of another type, or out of its range.
    """

    parallel: int = 0
    logprobs: int = 0
    prefix: str = ""
    system: str = ""
    style: str = ""

    def __post_init__(self) -> None:
        check_fields(self, _BATCH, SettingsError)
        check_style(self.style)
