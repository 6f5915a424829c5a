"""Infer-OS: large GPT-J, GPT-NeoX, BLOOM and GPT-2 models on an ordinary CPU."""

from __future__ import annotations

__version__ = "0.1.0"
