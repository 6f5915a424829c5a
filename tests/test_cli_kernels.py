"""``--no-native``, and where the command line says whose kernels compute."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import PARALLEL, Converter

from infer_os.native.backend import start_kernels, taken_types
from infer_os.native.layouts import llama_layouts


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infer_os.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def generated(path: Path, *options: object) -> dict[str, Any]:
    done = run("generate", path, "-p", "abc", "-n", 2, "--temperature", 0, "--json", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_statistics_say_whose_kernels_compute(converted: Converter) -> None:
    path, status = converted(PARALLEL, "q8_0"), start_kernels()
    kernels = generated(path)["kernels"]
    assert 0 <= kernels.pop("threads_left_out") <= 1
    assert kernels == {
        "in_use": status.in_use, "variant": status.variant or None,
        "reason": status.reason or None,
    }  # fmt: skip
    assert generated(path, "--no-native")["kernels"] == {
        "in_use": False, "variant": None, "reason": "switched off", "threads_left_out": 0.0,
    }  # fmt: skip


def test_the_system_says_it_too() -> None:
    answer = json.loads(run("system", "--json").stdout)
    assert answer["kernels"]["in_use"] == start_kernels().in_use
    assert answer["kernels"]["variant"] == (start_kernels().variant or None)
    amx = start_kernels().amx
    assert answer["amx"] == {
        "present": amx.present, "in_use": amx.in_use, "reason": amx.complaint or None,
    }  # fmt: skip
    done = run("system")
    assert done.stderr == ""
    assert "own kernels" in done.stdout
    assert re.search(rf"AMX int8 tiles +{re.escape(amx.text)}", done.stdout)
    if start_kernels().in_use:
        assert answer["whole_steps"] == sorted(taken_types(start_kernels()))
        assert "of models in bf16 f16 f32" in done.stdout


@pytest.mark.skipif(not start_kernels().in_use, reason="our kernels do not run here")
def test_a_plan_follows(converted: Converter) -> None:
    path = converted(PARALLEL, "q4_0")
    loads = [
        json.loads(run("plan", path, "--json", *options).stdout)["choice"]["load"]
        for options in ((), ("--no-native",))
    ]
    # copies in another layout pay for llama.cpp's own kernels alone
    assert loads[0] == "mmap"
    assert loads[1] == ("fast" if "q4_0" in llama_layouts().types else "mmap")
