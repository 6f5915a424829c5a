"""What the shell offers on Tab; typer keeps what begins like the word being typed."""

from __future__ import annotations


def model_names(incomplete: str) -> list[str]:
    """Names of the catalog, hub ids once an owner is typed; without any, the shell offers files."""
    from ..models.catalog import CATALOG

    return [model.id if "/" in incomplete else model.name for model in CATALOG]


def style_names() -> list[str]:
    """Styles of conversations."""
    from ..models.styles import STYLE_NAMES

    return list(STYLE_NAMES)


def type_names() -> list[str]:
    """Types that a model can be converted to."""
    from ..models.weight_types import RECIPES

    return list(RECIPES)


def load_modes() -> list[str]:
    """Ways to load a file."""
    from ..runtime.settings import LOADS

    return list(LOADS)
