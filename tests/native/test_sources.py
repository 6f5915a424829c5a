"""The C++ has one place for each decision: for threads, and for what the CPU can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "native" / "src"
FILES = sorted(path for path in SOURCE.rglob("*") if path.suffix in (".cpp", ".h"))


def files_with(pattern: str) -> set[str]:
    return {path.name for path in FILES if re.search(pattern, path.read_text())}


def test_threads_begin_in_two_places() -> None:
    """Those that come and go with a piece of work, and the team of the kernels."""
    found = files_with(r"std::(thread|jthread|async)\b|pthread_create")
    assert found == {"parallel.h", "team.cpp"}


def test_one_place_asks_what_the_cpu_can_run() -> None:
    asking = r"cpuid\.h|__get_cpuid|xgetbv|__builtin_cpu|target_clones|getauxval|sysctlbyname"
    assert files_with(asking) == {"cpu_features.cpp"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_constants_are_named_alike(path: Path) -> None:
    """As kConstant; what is in capitals is a macro or an enumerator of C."""
    for line in path.read_text().splitlines():
        if re.match(r"\s*(static )?constexpr [^(]*=", line):
            names = re.findall(r"(\w+)\s*(?:\[\w*\])?\s*(?:=|\{)", line.split("//")[0])
            assert not [name for name in names if name.isupper() and len(name) > 1], line
