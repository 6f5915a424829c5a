"""Infer-OS: large GPT-J, GPT-NeoX, BLOOM and GPT-2 models on an ordinary CPU.

``infer_os.load`` is the door to the Python API (:mod:`infer_os.api`); nothing heavy is imported
before one of its names is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Chat, Model, load
    from .native.errors import NativeError
    from .runtime.batch.records import Result
    from .runtime.batch.settings import BatchSettings
    from .runtime.errors import ModelBusy, ModelClosed, RuntimeFailure
    from .runtime.exclusive import Stream
    from .runtime.generate import Completion, FinishReason
    from .runtime.settings import EngineSettings, SamplingSettings, StopSettings

__version__ = "0.1.0"

__all__ = [
    "BatchSettings", "Chat", "Completion", "EngineSettings", "FinishReason", "Model", "ModelBusy",
    "ModelClosed", "NativeError", "Result", "RuntimeFailure", "SamplingSettings", "StopSettings",
    "Stream", "__version__", "load",
]  # fmt: skip

_MODULES = {
    "BatchSettings": "runtime.batch.settings", "Chat": "api", "Completion": "runtime.generate",
    "EngineSettings": "runtime.settings", "FinishReason": "runtime.generate", "Model": "api",
    "ModelBusy": "runtime.errors", "ModelClosed": "runtime.errors",
    "NativeError": "native.errors", "Result": "runtime.batch.records",
    "RuntimeFailure": "runtime.errors", "SamplingSettings": "runtime.settings",
    "StopSettings": "runtime.settings", "Stream": "runtime.exclusive", "load": "api",
}  # fmt: skip


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
