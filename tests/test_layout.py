"""The one way through the house: which room may import which, read from the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import SLOW
from helpers import REPOSITORY

#: Scripts that no part of the package imports, and that the wheel leaves out.
SCRIPTS = {
    path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("models/bundled/train*.py")
}
PRINTERS = {"cli.py", "terminal/console.py", "terminal/demo.py"}
C = {"ctypes", "llama_cpp", "cffi"}
#: Names of files that several rooms have; those of commands/ are called as the commands are.
SHARED_NAMES = {"__init__", "errors", "settings"}


def drawn_arrows() -> dict[str, set[str]]:
    """The tables of docs/design.md: what each room, and each part of the runtime, may import."""
    arrows = {}
    for line in (REPOSITORY / "docs" / "design.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            part = cells[0].strip("`")
            inside = part == "runtime" and part in arrows
            prefix = "runtime/" if "/" in part or inside else ""
            key = "runtime/" if inside else part
            arrows[key] = {f"{prefix}{name}" for name in cells[1].split()}
    return arrows


ARROWS = drawn_arrows()
ROOMS = [room for room in ARROWS if "/" not in room and (REPOSITORY / room).is_dir()]
GROUND = {"busy", "cache", "errors", "fields", "files", "json_text", "locks", "sizes"}
SOURCES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.py", *(f"{room}/**/*.py" for room in ROOMS))
    for path in REPOSITORY.glob(pattern)
    if path.relative_to(REPOSITORY).as_posix() not in SCRIPTS
)
CXX = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / "native" / "src").rglob("*")
    if path.suffix in (".cpp", ".h")
)
#: Lines. Past these a file or a function asks to be two.
LONGEST_FILE, LONGEST_FUNCTION = 450, 70
#: Rooms that know nothing of a terminal.
QUIET = ("convert", "models", "native", "runtime")
IN_QUIET = [source for source in SOURCES if source.split("/")[0] in QUIET]


def module_of(source: str) -> str:
    """The name under which a file is imported."""
    return ".".join(["infer_os", *Path(source).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(source): source for source in SOURCES}


def room_of(source: str) -> str:
    """The room of a file, by the name that the first table has for it."""
    first = source.split("/")[0].removesuffix(".py")
    return "ground" if first in GROUND else first


def part_of(source: str) -> str:
    """The part of the runtime that a file belongs to; "runtime/" for those in no folder."""
    parts = source.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else "runtime/"


@cache
def tree_of(source: str) -> ast.Module:
    return ast.parse((REPOSITORY / source).read_text())


def imported(source: str, text: str | None = None) -> Iterator[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package = ["infer_os", *Path(source).parent.parts]
    for node in ast.walk(ast.parse(text) if text else tree_of(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def targets(source: str, text: str | None = None) -> set[str]:
    """The files of ours that a file imports. The version, which is no code, is free to all."""
    found = set()
    for name in imported(source, text):
        if name.split(".")[0] != "infer_os" or name in ("infer_os", "infer_os.__version__"):
            continue
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name != "infer_os":
            found.add(MODULES[name])
    return found - {source}


def arrows_of(source: str, text: str | None = None) -> set[tuple[str, str]]:
    """The arrows of both tables that a file's imports are."""
    room, found = room_of(source), set()
    for target in targets(source, text):
        other = room_of(target)
        if other != room:
            found.add((room, other))
        elif room == "runtime" and part_of(source) != part_of(target):
            found.add((part_of(source), part_of(target)))
    return found


def wrong_arrows(source: str, text: str | None = None) -> set[tuple[str, str]]:
    """Arrows of a file that the design does not draw."""
    free = {"ground", "runtime/"}
    return {
        (one, other)
        for one, other in arrows_of(source, text)
        if other not in ARROWS[one] and other not in free
    }


@pytest.mark.parametrize("source", SOURCES)
def test_a_room_imports_only_what_it_may(source: str) -> None:
    assert wrong_arrows(source) == set()


def test_every_drawn_arrow_is_used() -> None:
    used = {arrow for source in SOURCES for arrow in arrows_of(source)}
    drawn = {(one, other) for one, others in ARROWS.items() for other in others}
    assert drawn - used == set()


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A chain of names that leads back to its first one; empty if there is none."""
    done: set[str] = set()
    path: list[str] = []

    def follow(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in sorted(arrows.get(name, ())):
            if found := follow(target):
                return found
        path.pop()
        done.add(name)
        return []

    for name in sorted(arrows):
        if found := follow(name):
            return found
    return []


def test_files_import_each_other_in_no_circle() -> None:
    assert circle({source: targets(source) for source in SOURCES}) == []


@pytest.mark.parametrize("source", [*SOURCES, *CXX])
def test_no_file_outgrows_a_reader(source: str) -> None:
    assert len((REPOSITORY / source).read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("source", SOURCES)
def test_no_function_outgrows_a_screen(source: str) -> None:
    functions = [
        node
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {f.name: lines for f in functions if (lines := lines_of(f)) > LONGEST_FUNCTION}
    assert long == {}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its decorators aside."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def lost_references(source: str, text: str) -> list[str]:
    """References of docstrings and comments (``:class:`~.room.Name```) that lead to nothing."""
    package = ["infer_os", *Path(source).parent.parts]
    lost = []
    for dots, path in re.findall(r":(?:mod|class|func|data|meth|exc):`~?(\.*)([\w.]+)`", text):
        if not dots and not path.startswith("infer_os."):
            continue
        base = package[: len(package) - len(dots) + 1] if dots else []
        module, names = ".".join([*base, path]), []
        while module not in MODULES:
            module, _, name = module.rpartition(".")
            names.append(name)
        known = names_of(module) if len(names) < 3 else set()
        if module == "infer_os" or (names and names[-1] not in known):
            lost.append(f"{dots}{path}")
    return lost


@cache
def names_of(module: str) -> set[str]:
    """What a module defines at its top."""
    found = set()
    for node in tree_of(MODULES[module]).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_references_lead_somewhere(source: str) -> None:
    assert lost_references(source, (REPOSITORY / source).read_text()) == []


def test_a_lost_reference_is_seen() -> None:
    text = (
        ":class:`~.engine.NoEngine` :mod:`.nothing` :func:`..errors.Error` "
        ":class:`~.engine.LlamaEngine`"
    )
    assert lost_references("runtime/a.py", text) == [".engine.NoEngine", ".nothing"]


def test_rooms_import_each_other_in_no_circle() -> None:
    assert circle(ARROWS) == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_a_file_has_a_name_of_its_own() -> None:
    seen: dict[str, list[str]] = {}
    for source in SOURCES:
        if not source.startswith("commands/"):
            seen.setdefault(Path(source).stem, []).append(source)
    assert {
        name: sources
        for name, sources in seen.items()
        if len(sources) > 1 and name not in SHARED_NAMES
    } == {}


@pytest.mark.parametrize("source", [s for s in SOURCES if not s.startswith("native/")])
def test_only_native_touches_c(source: str) -> None:
    assert not touches_c(source)


def touches_c(source: str, text: str | None = None) -> bool:
    """Whether a file imports what opens C libraries."""
    return bool({name.split(".")[0] for name in imported(source, text)} & C)


@pytest.mark.parametrize(
    "text",
    ["import ctypes.util", "from llama_cpp import llama_decode", "def f():\n    import cffi"],
)
def test_a_door_to_c_is_seen(text: str) -> None:
    assert touches_c("runtime/a.py", text)
    assert not touches_c("runtime/a.py", "from ..native import model")


@pytest.mark.parametrize("source", SOURCES)
def test_only_the_command_line_prints(source: str) -> None:
    if source in PRINTERS:
        return
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("sys.stdout", "sys.stderr", "sys.stdin"), f"line {node.lineno}"
        assert not (isinstance(node, ast.ImportFrom) and node.module in ("rich", "typer")), source


@pytest.mark.parametrize("source", IN_QUIET)
def test_a_room_never_imports_the_terminal(source: str) -> None:
    heavy = {"rich", "typer", "prompt_toolkit", "click"}
    assert not {name.split(".")[0] for name in imported(source)} & heavy


@pytest.mark.parametrize("source", IN_QUIET)
def test_torch_is_nowhere(source: str) -> None:
    foreign = {"torch", "transformers", "tokenizers", "safetensors", "pickle"}
    assert not {name.split(".")[0] for name in imported(source)} & foreign


@pytest.mark.parametrize("source", [s for s in IN_QUIET if s.startswith("models/")])
def test_models_do_no_io(source: str) -> None:
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"line {node.lineno}"


@pytest.mark.parametrize("name", sorted(GROUND))
def test_the_ground_stands_on_nothing_else(name: str) -> None:
    assert {room_of(target) for target in targets(f"{name}.py")} <= {"ground"}


def test_slow_tests_are_there() -> None:
    here = REPOSITORY / "tests"
    assert SLOW
    assert {name for name in SLOW if not (here / name).is_file()} == set()


def test_every_file_has_a_room() -> None:
    assert {room_of(source) for source in SOURCES} == {name for name in ARROWS if "/" not in name}


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
        ("store/a.py", "import infer_os.measure.rows"),
        ("measure/a.py", "from ..terminal import console"),
        ("api.py", "from .terminal import console"),
        ("cli.py", "from .runtime import engine"),
        ("commands/a.py", "from ..cli import main"),
        ("runtime/kv/a.py", "from ..plan.choice import choose"),
        ("runtime/a.py", "from .batch.records import Record"),
    ],
)
def test_a_wrong_arrow_is_seen(source: str, text: str) -> None:
    assert wrong_arrows(source, text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("convert/a.py", "import infer_os\nfrom infer_os import __version__"),
        ("convert/a.py", "from infer_os.native.model import LlamaModel\nfrom .blocks import ahead"),
        ("runtime/a.py", "from ..models.styles import STYLES"),
        ("native/a.py", "import ctypes, llama_cpp\nfrom ..files import write_file"),
        ("runtime/batch/a.py", "from ..settings import EngineSettings"),
    ],
)
def test_a_right_arrow_passes(source: str, text: str) -> None:
    assert wrong_arrows(source, text) == set()
