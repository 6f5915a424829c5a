"""Which model a request asks for, and with which adapter."""

from __future__ import annotations

from infer_os.fields import text

from ..runtime.settings import NO_ADAPTER
from .body import Body
from .errors import ApiError


def adapter_of(body: Body, of_model: str | None, loaded: tuple[str, ...]) -> str | None:
    """The adapter that a body asks for, as a record has it; None where it says nothing.

    Args:
        body: which may have the field.
        of_model: the one that the model's name says, if it does.
        loaded: those that there are.

    Raises:
        ApiError: two different ones, or one that is not loaded.
    """
    field = body.take("adapter", text())
    if field is not None and of_model not in (None, field):
        raise ApiError(f"adapter: the model's name says {of_model}; drop one", param="adapter")
    if field is not None and field not in (*loaded, NO_ADAPTER):
        there = f"this model has {', '.join((*loaded, NO_ADAPTER))}" if loaded else "none is loaded"
        raise ApiError(
            f"adapter: {field[:100]!r} is not here; {there}", param="adapter", code="invalid_value"
        )
    chosen = of_model if field is None else field
    return "" if chosen == NO_ADAPTER else chosen


def check_model(body: Body, names: tuple[str, ...]) -> str:
    """The name of the model that a body asks for; the first one where it names none.

    Raises:
        ApiError: another one (404).
    """
    name = body.take("model", text(), names[0])
    if name not in names:
        raise ApiError(
            f"the model {name[:100]!r} is not here; this server has {', '.join(names)}", 404,
            param="model", code="model_not_found",
        )  # fmt: skip
    return str(name)
