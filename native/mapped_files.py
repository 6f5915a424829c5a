"""Which models' files this process maps: a plan does not count their pages as the program's."""

from __future__ import annotations

from pathlib import Path

_FILES: dict[int, Path] = {}


def note_mapped(model: object, path: Path) -> None:
    """Remember the file that a model maps."""
    _FILES[id(model)] = path.resolve()


def forget_mapped(model: object) -> None:
    """Forget it, if there was one."""
    _FILES.pop(id(model), None)


def mapped_files() -> frozenset[Path]:
    """The files of all models that are open now."""
    return frozenset(list(_FILES.values()))
