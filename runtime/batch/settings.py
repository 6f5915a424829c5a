"""Settings of a batch, as a record that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from infer_os.fields import check_fields, text, whole

from ..errors import SettingsError
from ..settings import check_style

MOST_PARALLEL = 256
MOST_LOGPROBS = 100
MOST_SAMPLES = 1024
MOST_BEAMS = 64

_BATCH = {
    "parallel": whole(0, MOST_PARALLEL, f"1 to {MOST_PARALLEL}, or auto"),
    "logprobs": whole(0, MOST_LOGPROBS, f"0 (none) to {MOST_LOGPROBS}"),
    "prefix": text(),
    "system": text(),
    "style": text(),
    "beams": whole(0, MOST_BEAMS, f"2 to {MOST_BEAMS}; 0 or 1 is off"),
}


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How records are run: ``parallel`` sequences at once, 0 to measure how many are worth it.

    ``logprobs``: this many of the likeliest tokens are reported for each one drawn. ``prefix``
    precedes every prompt that is not a conversation; ``system`` opens every conversation that has
    no system message of its own. ``style`` frames conversations; empty for the model's own.
    With 2 or more ``beams`` the likeliest text is searched, instead of drawn, one record after the
    other.

    Raises:
        SettingsError: a value of another type, or out of its range, or two that do not go together.
    """

    parallel: int = 0
    logprobs: int = 0
    prefix: str = ""
    system: str = ""
    style: str = ""
    beams: int = 0

    def __post_init__(self) -> None:
        check_fields(self, _BATCH, SettingsError)
        check_style(self.style)
        if self.is_search and self.parallel:
            raise SettingsError(
                f"{self.parallel}: a beam search answers one record at a time; drop it, or beams",
                "parallel",
            )
        if self.is_search and self.logprobs:
            raise SettingsError(
                f"{self.logprobs}: a beam search reports none; drop it, or beams", "logprobs"
            )

    @property
    def is_search(self) -> bool:
        """Whether texts are found by beam search."""
        return self.beams > 1

    @property
    def n_sequences(self) -> int:
        """Sequences to make room for; 0 to measure how many are worth it."""
        return self.beams if self.is_search else self.parallel
