"""README and docs/: what follows from the code does, links lead somewhere, commands parse."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from command_lines import CommandLine, command_lines, complaint
from helpers import REPOSITORY

from infer_os.cli import app

DOCS = REPOSITORY / "docs"
RECIPES = REPOSITORY / "CONTRIBUTING.md"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.glob("*.md")])
REMEDY = "differs from what the code says; regenerate it: python docs/make_pages.py"
ROOT: Any = typer.main.get_command(app)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pages", DOCS / "make_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


# ---- pages that are written by docs/make_pages.py


@pytest.mark.parametrize("name", ["models.md", "sampling.md", "types.md"])
def test_a_written_page_is_that_of_the_code(script: ModuleType, name: str) -> None:
    assert script.PAGES[name]() == (DOCS / name).read_text("utf-8"), f"docs/{name} {REMEDY}"


def test_the_help_pages_are_those_of_the_code(script: ModuleType) -> None:
    text = (DOCS / "commands.md").read_text("utf-8")
    if f"typer {typer.__version__}." in text:
        assert script.commands_page() == text, f"docs/commands.md {REMEDY}"
    # another typer lays help out in its own way: what we say in it must still be there
    sections = dict(re.findall(r"^## (infer-os[^\n]*)\n\n```\n(.*?)^```", text, re.M | re.S))
    assert list(sections) == [path for path, _ in script.help_pages()], f"docs/commands.md {REMEDY}"
    for path, command in _commands(ROOT, "infer-os"):
        shown = " ".join(sections[path].split())
        said = [command.help.split("\f")[0]] if command.help else []
        for parameter in command.params:
            said += [*(o for o in parameter.opts if o.startswith("-")), parameter.help or ""]
        for part in said:
            assert " ".join(part.split()) in shown, f"docs/commands.md {REMEDY}: {path}, {part!r}"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{path} {name}")


def test_measured_rows_are_read_by_their_columns(script: ModuleType) -> None:
    rows = script.measured_types(
        "| `--type` | size | KL |\n|---|---|---|\n| `q8_0` | 6 MB | 1e-5 |\n\n"
        "| `--kv` | KL |\n|---|---|\n| `f16` | 2e-5 |\n"
    )
    assert rows == {"q8_0": {"`--type`": "`q8_0`", "size": "6 MB", "KL": "1e-5"}}


# ---- commands


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_line_parses(page: Path) -> None:
    wrong = [
        f"{line.text}: {reason}"
        for line in command_lines(page.read_text("utf-8"))
        if (reason := complaint(ROOT, line))
    ]
    assert wrong == []


def test_examples_in_help_parse() -> None:
    examples = [
        " ".join(found[1].split())
        for _, command in _commands(ROOT, "infer-os")
        for found in re.finditer(r"Example: (infer-os .*?)(?:\n\s*\n|\Z)", command.help or "", re.S)
    ]
    assert len(examples) >= 7
    assert [(e, c) for e in examples if (c := complaint(ROOT, CommandLine(e, True)))] == []


def test_command_lines_are_found() -> None:
    found = list(command_lines(
        "Say `infer-os plan` or\n\n```\n$ infer-os chat a.gguf   # talk\n"
        "HF_HUB_OFFLINE=1 infer-os run \\\n  --model x\ncat p | infer-os batch m -i -\n```\n\n"
        "    infer-os bench\n\nThen `infer-os system`.\n"
    ))  # fmt: skip
    assert [(line.text.split()[1], line.whole) for line in found] == [
        ("chat", True), ("run", True), ("batch", True), ("bench", True), ("plan", False),
        ("system", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("infer-os shat a.gguf", "no command 'shat'"),
        ("infer-os", "no command"),
        ("infer-os chat a.gguf --stile plain", "--stile"),
        ("infer-os chat a.gguf b.gguf", "too many"),
        ("infer-os chat", "missing: model"),
        ("infer-os models shew gpt2", "no command 'shew'"),
        ("infer-os models show gpt2 --type q8_0", "--type"),
        ("infer-os generate a.gguf --seed", "--seed"),
    ],
)
def test_a_wrong_command_line_is_seen(text: str, reason: str) -> None:
    assert reason in (complaint(ROOT, CommandLine(text, True)) or "")


@pytest.mark.parametrize(
    "text",
    [
        "infer-os --version", "infer-os models", "infer-os COMMAND --help", "infer-os chat --help",
        "infer-os generate a.gguf -p '...' > a.txt", "infer-os bench [MODEL] [--depths 0,512]",
        "infer-os --debug generate a.gguf   what a remark says", "infer-os models show gpt2 --json",
    ],
)  # fmt: skip
def test_a_right_command_line_passes(text: str) -> None:
    assert complaint(ROOT, CommandLine(text, True)) is None


def test_the_recipes_name_what_exists() -> None:
    text = RECIPES.read_text("utf-8")
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    tops = [top for top in REPOSITORY.iterdir() if top.name[0] != "." and top.name != "build"]
    found = [*tops, *(path for top in tops if top.is_dir() for path in top.rglob("*"))]
    files = {path.relative_to(REPOSITORY).as_posix() for path in found if path.is_file()}
    # without a folder, C++ may be llama.cpp's
    paths = {s for s in spans if re.fullmatch(r"[\w-]+\.py|([\w-]+/)+[\w-]+\.(py|h|cpp|md)", s)}
    known = files | {file.rpartition("/")[2] for file in files}
    assert len(paths) > 40
    assert [path for path in sorted(paths) if path not in known and "NAME" not in path] == []
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([\w-]+)`", text)) - targets == set()
    own = re.compile(r"(?!llama_|LLAMA_)([a-z]+(_[a-z]+)+|[A-Z]+(_[A-Z]+)+)")
    symbols = {span for span in spans if own.fullmatch(span)}
    sources = "".join(
        (REPOSITORY / file).read_text("utf-8")
        for file in files
        if file.endswith((".py", ".h", ".cpp"))
    )
    assert len(symbols) > 5
    assert [symbol for symbol in sorted(symbols) if not re.search(rf"\b{symbol}\b", sources)] == []


# ---- links and languages


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_both_readmes_have_the_same_blocks_headings_and_links() -> None:
    english, japanese = (
        (REPOSITORY / name).read_text("utf-8") for name in ("README.md", "README.ja.md")
    )
    assert _code_blocks(english) == _code_blocks(japanese)
    assert _headings(english) == _headings(japanese)
    assert _links(english) - {"README.ja.md"} == _links(japanese) - {"README.md"}
    assert "(README.ja.md)" in english[:400]
    assert "(README.md)" in japanese[:400]


def _code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$|^(?:    [^\n]*\n)+", text, re.M | re.S)


def _headings(text: str) -> list[str]:
    """The marks of every heading, outside of code."""
    return re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)


def _links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)\s]+)\)", text))
