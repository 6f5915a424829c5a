"""The one way through the house: which room may import which, read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import REPOSITORY

ROOMS = {
    "models": set(),
    "native": {"models"},
    "convert": {"models", "native"},
    "runtime": {"models", "native"},
}
#: What imports nothing of ours but its like, and every room may import.
GROUND = {"cache", "errors", "fields", "files"}
#: Those that see all of these, and what else they may.
UPPER = {
    "store": {*ROOMS, "planning"},
    "terminal": {*ROOMS, "planning", "store"},
}
#: Scripts that no part of the package imports, and that the wheel leaves out.
SCRIPTS = {"models/bundled/train.py"}
PRINTERS = {"cli.py", "terminal/console.py", "terminal/demo.py"}
SOURCES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.py", *(f"{room}/**/*.py" for room in (*ROOMS, *UPPER, "commands")))
    for path in REPOSITORY.glob(pattern)
    if path.relative_to(REPOSITORY).as_posix() not in SCRIPTS
)  # fmt: skip
IN_ROOMS = [source for source in SOURCES if source.split("/")[0] in ROOMS]


def imported(source: str, text: str | None = None) -> Iterator[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package = ["infer_os", *Path(source).parent.parts]
    for node in ast.walk(ast.parse(text or (REPOSITORY / source).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_arrows(source: str, text: str | None = None) -> list[str]:
    """Imports of a file that the design forbids."""
    room = source.split("/")[0]
    wrong = []
    for name in imported(source, text):
        parts = name.split(".")
        if parts[0] in ("ctypes", "llama_cpp") and room != "native":
            wrong.append(name)
        if parts[0] != "infer_os" or len(parts) < 2:
            continue
        target = parts[1]
        if target not in {room, "__version__", *GROUND, *(ROOMS | UPPER)[room]}:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("source", [*IN_ROOMS, *(s for s in SOURCES if s.split("/")[0] in UPPER)])
def test_a_room_imports_only_what_it_may(source: str) -> None:
    assert wrong_arrows(source) == []


@pytest.mark.parametrize("source", [s for s in SOURCES if not s.startswith("native/")])
def test_only_native_touches_c(source: str) -> None:
    assert not {name.split(".")[0] for name in imported(source)} & {"ctypes", "llama_cpp", "cffi"}


@pytest.mark.parametrize("source", SOURCES)
def test_only_the_command_line_prints(source: str) -> None:
    if source in PRINTERS:
        return
    for node in ast.walk(ast.parse((REPOSITORY / source).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("sys.stdout", "sys.stderr", "sys.stdin"), f"line {node.lineno}"
        assert not (isinstance(node, ast.ImportFrom) and node.module in ("rich", "typer")), source


@pytest.mark.parametrize("source", IN_ROOMS)
def test_a_room_never_imports_the_terminal(source: str) -> None:
    heavy = {"rich", "typer", "prompt_toolkit", "click"}
    assert not {name.split(".")[0] for name in imported(source)} & heavy


@pytest.mark.parametrize("source", IN_ROOMS)
def test_torch_is_nowhere(source: str) -> None:
    foreign = {"torch", "transformers", "tokenizers", "safetensors", "pickle"}
    assert not {name.split(".")[0] for name in imported(source)} & foreign


@pytest.mark.parametrize("source", [s for s in IN_ROOMS if s.startswith("models/")])
def test_models_do_no_io(source: str) -> None:
    for node in ast.walk(ast.parse((REPOSITORY / source).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"line {node.lineno}"


@pytest.mark.parametrize("name", sorted(GROUND))
def test_the_ground_stands_on_nothing(name: str) -> None:
    ours = {each for each in imported(f"{name}.py") if each.startswith("infer_os")}
    assert ours <= {"infer_os.errors", "infer_os.errors.Error"}


def test_every_room_is_there() -> None:
    assert {source.split("/")[0] for source in IN_ROOMS} == set(ROOMS)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("models/a.py", "import infer_os.native.model"),
        ("models/a.py", "def f():\n    from ..native import quantize"),
        ("native/a.py", "from infer_os.convert import pipeline"),
        ("native/a.py", "from .. import runtime"),
        ("convert/a.py", "from infer_os.runtime.engine import Engine"),
        ("runtime/a.py", "from ..convert import pipeline"),
        ("runtime/a.py", "import infer_os.cli"),
        ("runtime/a.py", "from ..terminal import console"),
        ("store/a.py", "from ..terminal import console"),
        ("terminal/a.py", "from ..commands import options"),
        ("runtime/deep/a.py", "from ...convert import pipeline"),
        ("convert/a.py", "import ctypes.util"),
        ("runtime/a.py", "from llama_cpp import llama_decode"),
    ],
)
def test_a_wrong_arrow_is_seen(source: str, text: str) -> None:
    assert wrong_arrows(source, text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("convert/a.py", "import infer_os\nfrom infer_os import __version__"),
        ("convert/a.py", "from infer_os.native.model import Model\nfrom .plan import Plan"),
        ("runtime/a.py", "from ..models.styles import STYLES"),
        ("native/a.py", "import ctypes, llama_cpp\nfrom ..models import network"),
        ("runtime/deep/a.py", "from ..settings import EngineSettings"),
    ],
)
def test_a_right_arrow_passes(source: str, text: str) -> None:
    assert wrong_arrows(source, text) == []
