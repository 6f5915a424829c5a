"""THIRD_PARTY.md names what pyproject.toml takes, and nothing else; docs name extras that exist."""

from __future__ import annotations

import re
import sys
from typing import Any

from helpers import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PYPROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


def package(requirement: str) -> str:
    """The name in ``name[extra]>=1``, as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement)[0]).lower()


def test_every_dependency_is_named_with_its_licence() -> None:
    required = [*PYPROJECT["build-system"]["requires"], *PYPROJECT["project"]["dependencies"]]
    required += [one for extra in EXTRAS.values() for one in extra]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$",
                      (REPOSITORY / "THIRD_PARTY.md").read_text("utf-8"), re.M)  # fmt: skip
    # "tokenizers, safetensors", "ray, extra `ray`", "llama-cpp-python, with llama.cpp inside"
    named = {package(part.strip()) for row in rows if row != "package"
             for part in row.split(", ") if not part.startswith(("extra ", "with "))}  # fmt: skip
    assert named == {package(one) for one in required}


def test_docs_name_extras_that_exist() -> None:
    pages = [*REPOSITORY.glob("README*.md"), *(REPOSITORY / "docs").glob("*.md")]
    named = {e for page in pages for e in re.findall(r"infer-os\[(\w+)\]", page.read_text("utf-8"))}
    assert named
    assert named - set(EXTRAS) == set()
