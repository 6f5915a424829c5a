"""The only door to C: llama.cpp, ggml and infer-os's own library.

Importing this package loads both libraries and checks that they belong together; if they do not,
:class:`~.errors.LibraryMismatch` says what to reinstall.
"""

from __future__ import annotations

from .library import check_build, load_library

check_build(load_library())
