"""What llama.cpp is given as if a file said so (``kv_overrides`` of ``llama_model_params``)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import llama_cpp


def key_overrides(values: Mapping[str, str | float]) -> ctypes.Array[Any]:
    """An array of ``llama_model_kv_override``, and the empty key that ends it."""
    overrides: ctypes.Array[Any] = (llama_cpp.llama_model_kv_override * (len(values) + 1))()
    for override, (key, value) in zip(overrides, values.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            override.value.val_str = value.encode()
        else:
            override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_FLOAT
            override.value.val_f64 = value
    return overrides
