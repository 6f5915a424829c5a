"""The check that infer-os's library, libllama and its Python declarations belong together."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infer_os.native import abi, library
from infer_os.native.abi import inferos_build_info
from infer_os.native.errors import LibraryMismatch
from infer_os.native.library import (
    build_complaint,
    build_info,
    check_build,
    load_library,
)


@pytest.fixture
def info() -> inferos_build_info:
    """What the installed library says; a copy, to be doctored."""
    return build_info(load_library())


def test_the_installed_libraries_belong_together(info: inferos_build_info) -> None:
    assert build_complaint(info) is None
    check_build(load_library())


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("ggml_version_built", b"0.1.2", ("built for ggml 0.1.2", "is loaded")),
        ("ggml_version_loaded", b"9.9.9", ("ggml 9.9.9 is loaded",)),
        ("sizeof_model_params", 8, ("llama_model_params of 8 bytes", "llama-cpp-python")),
        ("sizeof_context_params", 9, ("llama_context_params of 9 bytes", "llama-cpp-python")),
        ("sizeof_batch", 10, ("llama_batch of 10 bytes", "llama-cpp-python")),
        ("libllama_path", b"/opt/other/libllama.so", ("/opt/other/libllama.so", "loaded")),
    ],
)
def test_each_mismatch_is_told(
    info: inferos_build_info,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    value: object,
    parts: tuple[str, ...],
) -> None:
    setattr(info, field, value)
    complaint = build_complaint(info)
    assert complaint
    for part in parts:
        assert part in complaint
    monkeypatch.setattr(library, "build_info", lambda loaded: info)
    with pytest.raises(LibraryMismatch) as caught:
        check_build(load_library())
    assert complaint in str(caught.value)
    assert "pip install --force-reinstall" in str(caught.value)
    assert "infer-os" in str(caught.value)


def test_a_library_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import infer_os

    monkeypatch.setattr(infer_os, "__path__", [str(tmp_path)])
    with pytest.raises(LibraryMismatch, match=r"not installed; reinstall: pip install"):
        load_library.__wrapped__()


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import infer_os

    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "libinferos.so").write_bytes(b"\x7fELF broken")
    monkeypatch.setattr(infer_os, "__path__", [str(tmp_path)])
    with pytest.raises(LibraryMismatch, match=r"cannot be loaded.*Reinstall: pip install"):
        load_library.__wrapped__()


def test_two_copies_of_libllama_are_noticed(tmp_path: Path) -> None:
    """For real: a process whose first libllama is a copy elsewhere."""
    import llama_cpp

    source = Path(llama_cpp.__file__).parent / "lib"
    for path in source.iterdir():
        if ".so" in path.name:
            shutil.copy(path, tmp_path / path.name)
    script = (
        "import ctypes, os, sys\n"
        f"ctypes.CDLL({str(tmp_path / 'libllama.so.0')!r}, mode=ctypes.RTLD_GLOBAL)\n"
        "try:\n"
        "    import infer_os.native\n"
        "except Exception as error:\n"
        "    print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)\n"
        # two copies of one C++ library do not survive an orderly exit
        "    os._exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=False,
        env={"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 3
    assert "LibraryMismatch: infer-os loaded" in done.stderr
    assert str(tmp_path) in done.stderr


# what an installed library can be, when the Python beside it is newer
_OTHER_BUILDS = {
    "of another header": 'extern "C" const char * inferos_header_hash(void) { return "0123"; }',
    "without a hash": 'extern "C" void inferos_get_build_info(char * info) { info[0] = 1; }',
}


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("build", _OTHER_BUILDS)
def test_a_library_of_another_version_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    import infer_os

    (tmp_path / "native").mkdir()
    path = tmp_path / "native" / "libinferos.so"
    command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=_OTHER_BUILDS[build].encode(), check=True)
    monkeypatch.setattr(infer_os, "__path__", [str(tmp_path)])
    with pytest.raises(LibraryMismatch) as caught:
        load_library.__wrapped__()
    line = str(caught.value)
    assert line.startswith(f"{path}: it was built from another version of infer-os")
    assert "pip install" in line
    assert "\n" not in line


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    """Python code for another header than the installed library's."""
    script = (
        "import importlib.util, sys\n"
        "import infer_os\n"
        "name = 'infer_os.native.abi'\n"
        f"spec = importlib.util.spec_from_file_location(name, {abi.__file__!r})\n"
        "newer = sys.modules[name] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(newer)\n"
        "newer.HEADER_HASH = '0123456789abcdef'\n"
        "from infer_os.entry import main\n"
        "sys.argv = ['infer-os', 'system']\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "was built from another version of infer-os than this Python code" in done.stderr
    assert len(done.stderr.splitlines()) == 1
