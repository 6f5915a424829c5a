"""The root of every error that Infer-OS raises on purpose.

    Error
    ├── RuntimeFailure  settings, prompts, memory: ``infer_os.runtime.errors``
    ├── ConvertError    what cannot be found, downloaded or converted: ``infer_os.convert.errors``
    ├── ConfigError     a ``config.json`` that cannot be used: ``infer_os.models.network``
    └── NativeError     what the door to C refuses: ``infer_os.native.errors``

It imports nothing, and every room may import it.
"""

from __future__ import annotations


class Error(Exception):
    """Anything that Infer-OS refuses, or that fails at run time. The message is one line."""
