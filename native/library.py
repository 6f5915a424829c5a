"""Load infer-os's native library alongside llama.cpp's and check that they belong together."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import llama_cpp

from .abi import HEADER_HASH, declare, header_hash, inferos_build_info
from .errors import LibraryMismatch

_REINSTALL = "pip install --force-reinstall --no-deps infer-os"
_REBUILD = "pip install --no-deps --editable ."


@functools.cache
def load_library() -> ctypes.CDLL:
    """The native library, loaded once, with the types of its functions (see ``abi.py``).

    Raises:
        LibraryMismatch: it is not installed, was built from another version of its source than
            this Python code, or its llama.cpp is not to be found.
    """
    import infer_os

    # an editable install keeps Python and compiled files in different folders of one package
    candidates = [Path(root) / "native" / "libinferos.so" for root in infer_os.__path__]
    for path in candidates:
        if path.is_file():
            return _load(path)
    raise LibraryMismatch(f"libinferos.so is not installed; reinstall: {_REINSTALL}")


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryMismatch(
            f"{path}: cannot be loaded ({error}); it was built for another llama.cpp. "
            f"Reinstall: {_REINSTALL}"
        ) from error
    if header_hash(library) != HEADER_HASH:
        raise LibraryMismatch(
            f"{path}: it was built from another version of infer-os than this Python code. "
            f"Reinstall: {_REINSTALL}, or, in a checkout: {_REBUILD}"
        )
    declare(library)
    return library


def build_info(library: ctypes.CDLL) -> inferos_build_info:
    """What the library was built against and what it found in this process."""
    info = inferos_build_info()
    library.inferos_get_build_info(ctypes.byref(info))
    return info


def llama_version() -> str:
    """The version of llama.cpp in this process: a state is read by the version that wrote it."""
    loaded = build_info(load_library()).ggml_version_loaded.decode()
    return f"llama-cpp-python {llama_cpp.__version__}, ggml {loaded}"


def check_build(library: ctypes.CDLL) -> None:
    """Check that the library, the loaded libllama and its Python declarations agree.

    Raises:
        LibraryMismatch: versions or struct sizes differ, or two copies of libllama are loaded.
    """
    complaint = build_complaint(build_info(library))
    if complaint:
        raise LibraryMismatch(f"{complaint}. Reinstall: {_REINSTALL}")


def build_complaint(info: inferos_build_info) -> str | None:
    """Why the libraries do not belong together; None if they do."""
    built, loaded = info.ggml_version_built.decode(), info.ggml_version_loaded.decode()
    if built != loaded:
        return f"infer-os was built for ggml {built}, but ggml {loaded} is loaded"
    sizes = (
        ("llama_model_params", info.sizeof_model_params, llama_cpp.llama_model_params),
        ("llama_context_params", info.sizeof_context_params, llama_cpp.llama_context_params),
        ("llama_batch", info.sizeof_batch, llama_cpp.llama_batch),
    )
    for name, size, declared in sizes:
        if size != ctypes.sizeof(declared):
            return (
                f"infer-os was built with a {name} of {size} bytes, but the installed "
                f"llama-cpp-python {llama_cpp.__version__} declares {ctypes.sizeof(declared)}"
            )
    used = Path(info.libllama_path.decode()).resolve()
    expected = Path(llama_cpp.llama_cpp._lib._name).resolve()
    if used != expected:
        return f"infer-os loaded {used}, but llama-cpp-python loaded {expected}"
    return None
