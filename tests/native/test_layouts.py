"""llama.cpp's other layouts are used where they are known to run, and nowhere else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from helpers import BUNDLED, Converter

from infer_os.native import backend, layouts
from infer_os.native.backend import SWITCHED_OFF, KernelStatus, layout_notes
from infer_os.native.cpu import repacked_types
from infer_os.native.layouts import (
    Layouts,
    Repacking,
    Trial,
    choose_layouts,
    known_trial,
    llama_layouts,
    run_trial,
)
from infer_os.native.model import LlamaModel
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.settings import EngineSettings

ZEN = ("AVX2", "AVX512", "AVX512_VNNI", "REPACK")
SAPPHIRE = (*ZEN, "AMX_INT8")
BROKEN = Layouts(frozenset(), "its code dies of SIGILL here")


def dies(signal: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal; os.kill(os.getpid(), signal.{signal})"]


def test_amx_takes_more_types() -> None:
    amx = repacked_types(SAPPHIRE) - repacked_types(ZEN)
    assert amx == {"q4_1", "q8_0", "q5_k", "q6_k", "iq4_xs"}
    assert repacked_types(("AMX_INT8",)) == frozenset()  # ggml compiles it with VNNI only


def test_a_trial_decides_where_amx_is_compiled_in() -> None:
    def unwanted() -> Trial:
        raise AssertionError("there is nothing to try")

    assert choose_layouts(ZEN, unwanted) == Layouts(repacked_types(ZEN))
    assert choose_layouts(SAPPHIRE, lambda: Trial("")) == Layouts(repacked_types(SAPPHIRE))
    assert choose_layouts(SAPPHIRE, lambda: Trial("dies")) == Layouts(frozenset(), "dies")


def test_the_trial_of_the_installed_library_says_what_it_found() -> None:
    trial = run_trial()
    assert trial.lasting
    # where there is no AMX in it, everything that is compiled in does run
    assert trial.complaint == llama_layouts().reason


@pytest.mark.parametrize(
    ("command", "words", "lasting"),
    [
        (dies("SIGILL"), "SIGILL", True),
        (dies("SIGSEGV"), "SIGSEGV", True),
        (dies("SIGKILL"), "SIGKILL", False),
        ([sys.executable, "-c", "raise SystemExit(6)"], "products are wrong", True),
        (["/nonexistent/python"], "could not be tried", False),
    ],
)
def test_a_trial_that_fails(command: list[str], words: str, lasting: bool) -> None:
    trial = run_trial(command)
    assert words in trial.complaint
    assert trial.lasting is lasting


def test_without_a_python_to_start_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert "no Python" in run_trial().complaint


@pytest.mark.parametrize("complaint", ["", "its code dies of SIGILL here"])
def test_a_trial_is_run_once_per_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str
) -> None:
    runs = []

    def run() -> Trial:
        runs.append(1)
        return Trial(complaint)

    for _ in range(3):
        assert known_trial(tmp_path / "cache", run).complaint == complaint
    assert len(runs) == 1
    stored = json.loads((tmp_path / "cache" / "layouts.json").read_text())
    assert any("libggml-cpu" in str(part) for part in stored["library"])
    monkeypatch.setattr(layouts, "_fingerprint", lambda: ["another"])
    known_trial(tmp_path / "cache", run)
    assert len(runs) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"library": 1}'])
def test_a_damaged_record_is_tried_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "layouts.json").write_text(text)
    assert known_trial(tmp_path, lambda: Trial("new")).complaint == "new"


def test_what_may_go_otherwise_is_not_kept(tmp_path: Path) -> None:
    known_trial(tmp_path, lambda: Trial("killed", lasting=False))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert known_trial(tmp_path / "file", lambda: Trial("")).complaint == ""


@pytest.mark.parametrize(
    ("kinds", "features", "taken", "wanted"),
    [
        ({"q4_0", "f32"}, ZEN, set(), {"q4_0"}),
        ({"q4_0", "f32"}, ZEN, {"q4_0"}, set()),
        ({"iq4_nl", "q6_k"}, ZEN, {"q4_0", "q6_k"}, {"iq4_nl"}),
        # AMX would take the head from our kernels
        ({"iq4_nl", "q6_k"}, SAPPHIRE, {"q4_0", "q6_k"}, set()),
        ({"iq4_nl", "q6_k"}, SAPPHIRE, set(), {"iq4_nl", "q6_k"}),
        ({"iq4_nl", "q4_k"}, ZEN, {"q4_k"}, set()),
        ({"f16"}, SAPPHIRE, set(), set()),
    ],
)
def test_which_types_of_a_file_are_laid_out_anew(
    kinds: set[str], features: tuple[str, ...], taken: set[str], wanted: set[str]
) -> None:
    assert Repacking(repacked_types(features), frozenset(taken)).of(kinds) == wanted


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str, Layouts], bool]:
    """Whether llama.cpp is asked for other layouts when a file is loaded."""
    load = llama_cpp.llama_model_load_from_file

    def run(path: Path, mode: str, found: Layouts) -> bool:
        seen: list[bool] = []

        def spy(name: bytes, params: Any) -> Any:
            seen.append(bool(params.use_extra_bufts))
            params.use_extra_bufts = False
            return load(name, params)

        monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", spy)
        monkeypatch.setattr(backend, "llama_layouts", lambda: found)
        with LlamaModel(path, load=mode, native=False):
            return seen[0]

    return run


@pytest.mark.parametrize("mode", ["fast", "direct"])
def test_a_layout_that_dies_is_never_asked_for(
    converted: Converter, asked: Callable[[Path, str, Layouts], bool], mode: str
) -> None:
    path = converted(BUNDLED[0], "q4_0")
    good = Layouts(repacked_types(SAPPHIRE))
    assert asked(path, mode, good)
    assert not asked(path, mode, BROKEN)
    assert not asked(path, "mmap", good)


def test_it_is_said(converted: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted(BUNDLED[0], "q4_0")
    monkeypatch.setattr(backend, "llama_layouts", lambda: BROKEN)
    monkeypatch.setattr(backend, "used_features", lambda: SAPPHIRE)
    for load, n in (("fast", 1), ("mmap", 0)):
        settings = EngineSettings(64, load, 1, native=False)
        with LlamaEngine(path, settings) as engine:
            assert sum("SIGILL" in note for note in engine.info.notes) == n
        with BatchEngine(path, settings, BatchSettings(parallel=1)) as batch:
            assert sum("SIGILL" in note for note in batch.notes) == n
    # where ours compute all of it, nothing is missed
    ours = KernelStatus("avx2")
    monkeypatch.setattr(backend, "taken_types", lambda status: frozenset({"q4_0"}))
    assert layout_notes({"q4_0", "f32"}, ours) == ()
    assert layout_notes({"q4_1"}, ours) != ()
    assert layout_notes({"f16"}, SWITCHED_OFF) == ()


def test_the_child_leaves_nothing_behind(tmp_path: Path) -> None:
    before = os.listdir()
    run_trial(dies("SIGILL"))
    assert os.listdir() == before
