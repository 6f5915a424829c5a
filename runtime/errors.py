"""The errors of the runtime.

RuntimeFailure
├── SettingsError   an option's value that cannot work
├── PromptError     a prompt that is empty or does not fit the context
└── MemoryShortage  a model that does not fit into this machine's memory
"""

from __future__ import annotations


class RuntimeFailure(Exception):
    """Anything that the runtime refuses."""


class SettingsError(RuntimeFailure):
    """An option whose value cannot work."""


class PromptError(RuntimeFailure):
    """A prompt that cannot be processed."""


class MemoryShortage(RuntimeFailure):
    """The model does not fit into memory."""
