"""AMX's tiles: the kernels' products with emulated instructions equal the portable path to the last
bit, the library has the real ones, and they are used only where a child process has run them."""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLED, Converter

from infer_os.native import amx, layouts
from infer_os.native.abi import Status
from infer_os.native.amx import Amx, use_amx
from infer_os.native.backend import start_kernels
from infer_os.native.cpu import multiply_rate
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.layouts import Trial, run_trial
from infer_os.native.library import load_library

from .test_products import (
    HALVES,
    TYPES,
    product,
    random_columns,
    random_weights,
    same_bits,
    variants,
)

#: The real one is not run unless a child process has survived it.
TILES = ("amx-emulated", "amx")


def skip_unless_run(variant: str) -> None:
    if "avx512vnni" not in variants():
        pytest.skip("the tiles' sums are scaled by AVX-512")
    if variant == "amx" and not start_kernels().amx.in_use:
        pytest.skip(f"AMX is {start_kernels().amx.text}")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", TILES)
def test_tiles_equal_the_portable_path(variant: str, kind: str) -> None:
    skip_unless_run(variant)
    for n_rows, n_per_row, counts in (
        (37, 256, range(15, 71)),
        (16, 2304, (16, 17, 70)),  # more than is unpacked at once
        (131, 512, (16, 31, 200)),
        (523, 1280, (16, 33)),  # several panels at once
        (64, 256, (599, 600)),
    ):
        weights = random_weights(kind, n_rows, n_per_row)
        x = random_columns(max(counts), n_per_row)
        wanted = product("portable", kind, weights, x)
        assert wanted is not None
        for n in counts:
            got = product(variant, kind, weights, x[:n], 1 + n % 4)
            assert got is not None
            assert same_bits(got, wanted[:n]), (n_rows, n)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variant", TILES)
def test_extreme_numbers_come_out_alike(variant: str, kind: str) -> None:
    skip_unless_run(variant)
    x = random_columns(19, 512)
    x[0] = 0
    x[1, ::2] *= 1e-41  # denormal
    x[2] *= 1e30  # no float16 scale is as large
    x[3, 40], x[4, 70] = np.nan, np.inf
    x[5] = np.where(x[5] < 0, -1, 1)  # every quant is 127 or -127
    weights = random_weights(kind, 40, 512).reshape(40, -1, ggml_type_named(kind).bytes)
    halves = np.array([65504, -65504, 6e-8, 0, np.nan, np.inf], np.float16)
    for at in HALVES[kind]:
        weights[: len(halves), 0, at : at + 2] = halves[:, None].view(np.uint8)
    # the largest and the least quants
    weights[8], weights[9] = 0xFF, 0x80
    weights[8:10, :, HALVES[kind][0] : HALVES[kind][0] + 2] = np.frombuffer(b"\x00\x3c", np.uint8)
    weights = weights.reshape(40, -1)
    wanted, got = (product(name, kind, weights, x, 2) for name in ("portable", variant))
    assert wanted is not None and got is not None
    assert same_bits(got, wanted)


_PROMPT = """
import hashlib, sys
from pathlib import Path
from infer_os.native.backend import start_kernels
from infer_os.native.context import Context, ContextParams
from infer_os.native.library import load_library
from infer_os.native.model import LlamaModel

start_kernels()
assert load_library().inferos_kernels_choose(sys.argv[2].encode()) == 0
model = LlamaModel(Path(sys.argv[1]), native=True)
with Context(model, ContextParams(256, int(sys.argv[3]), n_outputs_max=90)) as context:
    context.decode([7 * i % 200 for i in range(90)], 0, outputs=90)
    print(load_library().inferos_kernels_name().decode(),
          hashlib.sha256(context.logits_rows(90).tobytes()).hexdigest())
"""


def prompt(path: Path, variant: str, threads: int) -> list[str]:
    """The variant that computed a prompt's logits, and what they hash to."""
    done = subprocess.run(
        [sys.executable, "-c", _PROMPT, str(path), variant, str(threads)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("kind", ["q4_0", "q6_k"])
def test_a_prompt_has_the_same_logits(converted: Converter, kind: str) -> None:
    skip_unless_run("amx-emulated")
    path = converted(BUNDLED[0], kind)
    name, wanted = prompt(path, "avx512vnni", 2)
    assert name == "avx512vnni"
    for threads in (1, 3):
        assert prompt(path, "amx-emulated", threads) == ["amx-emulated", wanted]


def test_the_library_has_the_instructions() -> None:
    """They come with the stores of the shapes that they read, which GCC 12 leaves out elsewhere."""
    objdump = shutil.which("objdump")
    if objdump is None or "avx512vnni" not in variants():
        pytest.skip("needs objdump and a library for x86")
    lines = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", load_library()._name],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    code = [" ".join(line.split()[1:]) for line in lines if ":" in line]
    used = collections.Counter(line.split()[0] for line in code if line)
    # a tile of each width, with one scale, with two or with a minimum
    assert used["tdpbssd"] > 27
    probed = 4  # products of the probe, of four operands that are loaded once; one sum is stored
    assert used["tilezero"] == used["tdpbssd"]
    assert used["tileloadd"] == 2 * (used["tdpbssd"] - probed) + 4
    assert used["tilestored"] == used["tdpbssd"] - probed + 1
    loads = [i for i, line in enumerate(code) if line.startswith("ldtilecfg")]
    shaped = 0
    for i in loads:
        on_stack = re.fullmatch(r"ldtilecfg (0x[0-9a-f]+)?\(%rsp\)", code[i])
        if on_stack is None:
            continue  # what a thread had before
        start = int(on_stack[1] or "0", 16)
        stores = re.findall(r"mov\S* [^;]*,(0x[0-9a-f]+)?\(%rsp\);", ";".join(code[i - 30 : i + 1]))
        # the palette, the bytes of the rows, and the rows: three parts of 64 bytes
        assert {start, start + 16, start + 48} <= {int(at or "0", 16) for at in stores}
        shaped += 1
    assert shaped >= 1
    assert "ldtilecfg (%rax)" in code and "sttilecfg (%rax)" in code


class FakeLibrary:
    """One for a CPU with AMX, whose system allows it or does not."""

    _name = __file__

    def __init__(self, status: Status) -> None:
        self.status, self.chosen = status, list[bytes]()

    def inferos_has_amx(self) -> int:
        return 1

    def inferos_kernels_name(self) -> bytes:
        return b"avx512vnni"

    def inferos_kernels_choose(self, name: bytes) -> int:
        self.chosen.append(name)
        return self.status


@pytest.mark.parametrize(
    ("trial", "status", "text"),
    [
        (Trial(""), Status.OK, "used"),
        (Trial("its code dies of SIGILL here"), Status.OK,
         "present, not used: its code dies of SIGILL here"),
        (Trial(""), Status.NO_KERNEL, "present, not used: the system does not allow it"),
    ],
)  # fmt: skip
def test_it_is_used_if_it_was_tried_and_is_allowed(
    monkeypatch: pytest.MonkeyPatch, trial: Trial, status: Status, text: str
) -> None:
    library = FakeLibrary(status)
    monkeypatch.setattr(amx, "load_library", lambda: library)
    tried = []
    found = use_amx(lambda: tried.append(trial) or trial)
    assert found.text == text
    assert found.in_use == (text == "used")
    assert library.chosen == [b"amx", *([b"avx512vnni"] if trial.complaint else [])]
    assert tried == ([trial] if status == Status.OK else [])  # no child for what is refused


def test_where_there_is_none_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted() -> Trial:
        raise AssertionError("there is nothing to try")

    monkeypatch.setattr(amx, "has_amx", lambda: False)
    assert use_amx(unwanted) == Amx()
    assert Amx().text == "not present"


def test_the_outcome_of_a_trial_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = FakeLibrary(Status.OK)
    calls = []

    def trial(*, call: tuple[str, ...]) -> Trial:
        calls.append(call)
        return Trial("its code dies of SIGILL here")

    monkeypatch.setattr(amx, "load_library", lambda: library)
    monkeypatch.setattr(amx, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(amx, "run_trial", trial)
    assert [use_amx().complaint for _ in range(3)] == ["its code dies of SIGILL here"] * 3
    assert calls == [("inferos_kernels_try", "amx")]
    # beside that of llama.cpp's layouts
    assert [path.name for path in tmp_path.iterdir()] == ["amx.json"]
    monkeypatch.setattr(amx, "Path", lambda name: layouts.Path(amx.__file__))
    use_amx()
    assert len(calls) == 2  # another library


def test_a_child_tries_a_variant() -> None:
    skip_unless_run("amx-emulated")
    assert run_trial(call=("inferos_kernels_try", "amx-emulated")) == Trial("")
    none = run_trial(call=("inferos_kernels_try", "abc"))
    assert "not allow" in none.complaint and not none.lasting


def test_the_bounds_are_measured_with_tiles() -> None:
    """The emulated instructions end the process where shapes do not fit."""
    skip_unless_run("amx-emulated")
    library = load_library()
    before = library.inferos_kernels_name()
    try:
        assert library.inferos_kernels_choose(b"amx-emulated") == Status.OK
        assert multiply_rate(1, seconds=0.001) > 0
        assert multiply_rate(1, seconds=0.001, scaled=True) > 0
    finally:
        library.inferos_kernels_choose(before)


def test_a_variant_that_does_not_run_is_not_chosen() -> None:
    library = load_library()
    before = library.inferos_kernels_name()
    assert library.inferos_kernels_choose(b"abc") == Status.NO_KERNEL
    assert library.inferos_kernels_name() == before
