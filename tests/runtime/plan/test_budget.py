"""Budgets: of any process, and of this one, whose libraries are counted as they are mapped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.bundled import TARGET
from infer_os.runtime.plan import budget
from infer_os.runtime.plan.budget import own_budget, some_budget
from infer_os.runtime.plan.memory_plan import (
    MAPPED_BYTES,
    PROCESS_BYTES,
    TABLES_BYTES,
    program_bytes,
)


def test_a_limit_stands_for_what_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = budget.read_memory().usable
    assert some_budget(12345).limit == own_budget(12345).limit == 12345
    assert abs(some_budget().limit - usable) < 1 << 30


@pytest.mark.parametrize(
    ("mapped", "program"),
    [
        (None, PROCESS_BYTES),
        (MAPPED_BYTES, PROCESS_BYTES),
        (MAPPED_BYTES + 500_000_000, PROCESS_BYTES),  # others' libraries
        (MAPPED_BYTES - 8_000_000, PROCESS_BYTES - 6_000_000),
    ],
)
def test_libraries_are_counted_as_they_are_mapped(
    monkeypatch: pytest.MonkeyPatch, mapped: int | None, program: int
) -> None:
    monkeypatch.setattr(budget, "mapped_file_bytes", lambda: mapped)
    monkeypatch.setattr(budget, "mapped_bytes_of", lambda package: 0)
    assert program_bytes(mapped) == own_budget(1).program == program
    assert some_budget(1).program == PROCESS_BYTES


def test_the_reader_of_parquet_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert some_budget(1).tables == TABLES_BYTES
    pytest.importorskip("pyarrow.parquet")
    with open("/proc/self/smaps") as maps:
        of_pyarrow, resident = False, 0
        for line in maps:
            if line[0] in "0123456789abcdef":
                of_pyarrow = "/pyarrow/" in line
            elif of_pyarrow and line.startswith("Rss:"):
                resident += int(line.split()[1]) * 1024
    found = own_budget(1)
    assert found.tables == resident > 5_000_000
    monkeypatch.setattr(budget, "mapped_file_bytes", lambda: MAPPED_BYTES + found.tables - 4000)
    assert own_budget(1).program == PROCESS_BYTES - 3000


def test_the_system_says_what_is_mapped() -> None:
    from infer_os.runtime.plan.machine import mapped_file_bytes

    mapped = mapped_file_bytes()
    assert mapped is None or 5_000_000 < mapped < 5_000_000_000


def test_pages_of_an_open_model_are_not_of_the_program(tmp_path: Path) -> None:
    """Until the last one is closed; the file has 6 MB."""
    code = """
import sys
from pathlib import Path
from infer_os.native.mapped_files import mapped_files
from infer_os.native.model import LlamaModel
from infer_os.runtime.plan.budget import own_budget
path = Path(sys.argv[1])
own_budget(1)
LlamaModel(path, load="fast").close()
alone = own_budget(1).program
models = [LlamaModel(path) for _ in range(2)]
beside = own_budget(1).program
assert mapped_files() == {path.resolve()}
models[0].close()
assert mapped_files() == {path.resolve()}
models[1].close()
assert mapped_files() == frozenset()
copies = LlamaModel(path, load="fast")
assert mapped_files() == frozenset()
print(alone, beside)
"""
    path = tmp_path / "model.gguf"
    convert(ConvertSettings(TARGET, path, "q8_0"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    alone, beside = map(int, done.stdout.split())
    assert abs(beside - alone) < 1_000_000
