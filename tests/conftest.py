"""Fixtures that several rooms share: converted reference checkpoints, made once per run."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# before OpenMP is loaded: threads that wait must not keep a busy machine's cores from others
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# users' Python buffers what it writes, so streams that fail do so later
os.environ.pop("PYTHONUNBUFFERED", None)

from helpers import PARALLEL, Converter, copy_checkpoint
from in_process import Cli, runner

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.weight_types import RECIPES, TENSOR_TYPES, Recipe, TensorType
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.settings import EngineSettings

#: Files whose tests take long, measured; a file that is not there is fast.
SLOW = frozenset(
    re.findall(r"^[\w/]+\.py", (Path(__file__).parent / "slow_tests.txt").read_text(), re.M)
)


def _is_slow(path: Path) -> bool:
    here = Path(__file__).parent
    return path.is_relative_to(here) and path.relative_to(here).as_posix() in SLOW


def pytest_configure(config: pytest.Config) -> None:
    """Collecting thousands of tests makes nothing that is garbage; looking for it takes a tenth."""
    if config.option.markexpr == "not slow":
        gc.disable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m "not slow"`` does not even import them."""
    if config.option.markexpr == "not slow" and _is_slow(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark their tests."""
    for item in items:
        if _is_slow(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """Convert a checkpoint folder to a type, once."""
    made: dict[tuple[Path, str], Path] = {}

    def get(folder: Path = PARALLEL, kind: str = "f16") -> Path:
        if (folder, kind) not in made:
            target = tmp_path_factory.mktemp(folder.name) / f"{kind}.gguf"
            convert(ConvertSettings(folder, target, kind))
            made[folder, kind] = target
        return made[folder, kind]

    return get


@pytest.fixture
def foreign_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """tq2_0 is a ``--type``: weights that our kernels do not take."""
    row = TensorType(
        "tq2_0", 256, "q4_0", is_weighted=False, is_column_by_column=False, layouts=frozenset()
    )
    monkeypatch.setitem(TENSOR_TYPES, row.name, row)
    monkeypatch.setitem(RECIPES, row.name, Recipe(row.name, row.name, 37, "q6_k", is_chosen=False))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a two-shard reference checkpoint, for a test to spoil."""
    return copy_checkpoint(PARALLEL, tmp_path / "checkpoint")


@pytest.fixture
def engine(converted: Converter) -> Iterator[LlamaEngine]:
    """A fresh engine on a tiny random model."""
    with LlamaEngine(converted(), EngineSettings(context=128, threads=1)) as loaded:
        yield loaded


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """The command line in this process, with a cache of its own."""
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return runner(monkeypatch, capfdbinary)
