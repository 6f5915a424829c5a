"""Whether importance weights are those of what is converted.

Goes in: weights, and settings or a plan. Comes out: notes on what has none, or an error.
"""

from __future__ import annotations

from .conversion_plan import ConversionPlan
from .errors import UnsupportedError
from .imatrix import ImportanceMatrix
from .settings import ConvertSettings
from .statistics import Statistics

# rows that are looked up are not multiplied: no weights are expected
_LOOKED_UP = "token_embd.weight"


def check_rotation(importance: ImportanceMatrix, settings: ConvertSettings) -> None:
    """Refuse weights for columns other than those of the file.

    Raises:
        UnsupportedError: only one of the two is rotated.
    """
    option = f"--imatrix {settings.imatrix}"
    if settings.statistics is not None:
        option = f"--statistics {settings.statistics}"
    if importance.rotation and not settings.fold_rotation:
        raise UnsupportedError(f"{option}: it was collected with --fold-rotation; add that option")
    if settings.fold_rotation and not importance.rotation:
        raise UnsupportedError(
            f"{option} with --fold-rotation: its weights are for "
            "unrotated columns; collect them with --calibrate instead"
        )


def weight_notes(
    plan: ConversionPlan, importance: ImportanceMatrix | None, statistics: Statistics | None
) -> tuple[str, ...]:
    """Which quantized matrices have no weights, or too little text.

    Raises:
        SourceError: the weights were made for another model.
    """
    if importance is None:
        return ()
    widths = {t.rule.target: t.rule.shape[-1] for t in plan.tensors if t.type.quantized}
    missing = [name for name in importance.missing(widths) if name != _LOOKED_UP]
    if statistics is not None:
        return statistics.notes(plan)
    if not missing:
        return ()
    return (f"imatrix: no weights for {len(missing)} matrices, such as {missing[0]}",)
