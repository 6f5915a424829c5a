"""Settings of scoring, as a record that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from infer_os.fields import check_fields, flag, whole

from ..batch.settings import MOST_PARALLEL
from ..errors import SettingsError

_SCORING = {
    "parallel": whole(0, MOST_PARALLEL, f"1 to {MOST_PARALLEL}, or auto"),
    "totals": flag(),
}


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How records are scored: ``parallel`` sequences at once, 0 for 8, or fewer if 8 do not fit.

    With ``totals`` a result has sums alone, and no tokens.

    Raises:
        SettingsError: a value of another type, or out of its range.
    """

    parallel: int = 0
    totals: bool = False

    def __post_init__(self) -> None:
        check_fields(self, _SCORING, SettingsError)
