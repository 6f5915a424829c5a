"""Infer-OS: large GPT-J, GPT-NeoX, BLOOM and GPT-2 models on an ordinary CPU.

``infer_os.load`` is the entry to the Python API (:mod:`infer_os.api`); nothing heavy is imported
before one of its names is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Chat, Model, load
    from .convert.errors import ConvertError, DownloadError, SourceError, UnsupportedError
    from .errors import Error
    from .models.network import ConfigError
    from .native.errors import GgufError, GrammarError, NativeError
    from .runtime.batch.records import Result
    from .runtime.batch.settings import BatchSettings
    from .runtime.errors import (
        ModelBusy,
        ModelClosed,
        PromptError,
        RuntimeFailure,
        SessionError,
        SettingsError,
        TemplateFailure,
    )
    from .runtime.exclusive import Stream
    from .runtime.generate import Completion, FinishReason
    from .runtime.plan.memory_plan import MemoryShortage
    from .runtime.scoring.embedder import EmbedResult
    from .runtime.scoring.score_records import ScoreResult
    from .runtime.scoring.settings import ScoringSettings
    from .runtime.settings import EngineSettings, SamplingSettings, StopSettings

__version__ = "0.1.0"

__all__ = [
    "BatchSettings", "Chat", "Completion", "ConfigError", "ConvertError", "DownloadError",
    "EmbedResult", "EngineSettings", "Error", "FinishReason", "GgufError", "GrammarError",
    "MemoryShortage", "Model", "ModelBusy", "ModelClosed", "NativeError", "PromptError", "Result",
    "RuntimeFailure", "SamplingSettings", "ScoreResult", "ScoringSettings", "SessionError",
    "SettingsError", "SourceError", "StopSettings", "Stream", "TemplateFailure",
    "UnsupportedError", "__version__", "load",
]  # fmt: skip

_NAMES = {
    "api": ("Chat", "Model", "load"),
    "convert.errors": ("ConvertError", "DownloadError", "SourceError", "UnsupportedError"),
    "errors": ("Error",),
    "models.network": ("ConfigError",),
    "native.errors": ("GgufError", "GrammarError", "NativeError"),
    "runtime.batch.records": ("Result",),
    "runtime.batch.settings": ("BatchSettings",),
    "runtime.errors": (
        "ModelBusy", "ModelClosed", "PromptError", "RuntimeFailure", "SessionError",
        "SettingsError", "TemplateFailure",
    ),
    "runtime.exclusive": ("Stream",),
    "runtime.generate": ("Completion", "FinishReason"),
    "runtime.plan.memory_plan": ("MemoryShortage",),
    "runtime.scoring.embedder": ("EmbedResult",),
    "runtime.scoring.score_records": ("ScoreResult",),
    "runtime.scoring.settings": ("ScoringSettings",),
    "runtime.settings": ("EngineSettings", "SamplingSettings", "StopSettings"),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
