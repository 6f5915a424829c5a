"""The bundled models: an ordinary Hugging Face checkpoint, its draft, and held-out text."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

#: About 6 M parameters, trained on Jane Austen's novels; see its README.md.
TARGET = _FOLDER / "austen-6m"

#: A tenth of that size, with the same tokenizer.
DRAFT = _FOLDER / "austen-draft"

#: Text that neither model has seen.
HELD_OUT = _FOLDER / "held-out.txt"
