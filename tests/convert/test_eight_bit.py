"""Weights that bitsandbytes stored in 8 bits: decoded as it does, in both of its forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TESTS, Tensors, copy_checkpoint, read_tensors, set_config, write_shards
from hub_fixtures import environment
from numpy.typing import NDArray
from torch_writer import write_torch

from infer_os.convert.eight_bit import EightBit
from infer_os.convert.errors import ConvertError, FileFormatError, PlanError, UnsupportedError
from infer_os.convert.pipeline import convert
from infer_os.convert.safetensors_file import SafetensorsFile
from infer_os.convert.settings import ConvertSettings
from infer_os.native.gguf_file import read_gguf_header
from infer_os.store.planning import find_shape
from infer_os.store.resolve import find_source

FAMILIES = ("gptj", "bloom", "neox-sequential")


def by_rows(weight: NDArray[Any]) -> tuple[Tensors, NDArray[np.float32]]:
    """LLM.int8: what the file holds, and what that means, by the formula of the paper."""
    wide = weight.astype(np.float64)
    largest = np.abs(wide).max(axis=1)
    values = np.round(wide * 127 / largest[:, None]).astype(np.int8)
    means = (values * (largest.astype(np.float32).astype(np.float64)[:, None] / 127)).astype("f4")
    parts = {"weight": values, "SCB": largest.astype(np.float32), "weight_format": np.uint8(0)}
    return {key: np.asarray(value) for key, value in parts.items()}, means


def by_blocks(weight: NDArray[Any]) -> tuple[Tensors, NDArray[np.float32]]:
    """Blocks of 4096 values, each an index into a code: likewise."""
    code = np.sign(np.linspace(-1, 1, 256)) * np.linspace(-1, 1, 256) ** 2
    flat = weight.astype(np.float64).reshape(-1)
    scales = [np.abs(flat[at : at + 4096]).max() for at in range(0, len(flat), 4096)]
    absmax = np.array(scales, np.float32)
    spread = np.repeat(absmax.astype(np.float64), 4096)[: len(flat)]
    index = np.abs(flat[:, None] / spread[:, None] - code[None]).argmin(axis=1).astype(np.uint8)
    means = (code.astype(np.float32)[index] * spread.astype(np.float32)).reshape(weight.shape)
    parts = {"weight": index.reshape(weight.shape), "absmax": absmax, "code": code.astype("f4")}
    return parts, means


FORMS = {"rows": by_rows, "blocks": by_blocks}


def folders(place: Path, family: str, form: str, *, torch: bool = False) -> tuple[Path, Path]:
    """A checkpoint in 8 bits, and one of the values that it stands for."""
    stored, plain = copy_checkpoint(TESTS / "reference" / family, place / "stored"), place / "plain"
    with SafetensorsFile(stored / "model.safetensors") as file:
        tensors = {name: np.array(file.array(name)) for name in file.tensors}
    plain = copy_checkpoint(stored, plain)
    eight: Tensors = {}
    wide: Tensors = {}
    for name, value in tensors.items():
        if value.dtype == np.uint16:  # the bits of bfloat16
            value = (value.astype("u4") << 16).view("f4")
        stem = name.removesuffix(".weight")
        if value.ndim != 2 or stem == name or value.dtype == np.bool_:
            eight[name] = wide[name] = value
            continue
        parts, wide[name] = FORMS[form](value)
        eight |= {f"{stem}.{part}": data for part, data in parts.items()}
    for path in [*stored.glob("model*"), *plain.glob("model*")]:
        path.unlink()
    write_shards(plain, [wide])
    if torch:
        write_torch(stored / "pytorch_model.bin", eight)
    else:
        write_shards(stored, [eight])
    return stored, plain


def data_of(source: Any, target: Path, kind: str = "f32", **settings: Any) -> bytes:
    convert(ConvertSettings(source, target, kind, force=True, **settings))
    return target.read_bytes()[read_gguf_header(target).data_offset :]


def test_equal_to_what_bitsandbytes_computes() -> None:
    """Stored by its version 0.50.2 on a CPU, in tests/reference/make_eight_bit.py."""
    stored = np.load(TESTS / "reference" / "eight_bit.npz")
    order = np.array([5, 0, 23, 17])
    for matrix, wanted in (
        (EightBit(stored["rows"], stored["scales"]), stored["rows_mean"]),
        (EightBit(stored["blocks"], stored["absmax"], stored["code"]), stored["blocks_mean"]),
    ):
        assert (matrix.rows(slice(0, 24)) == wanted).all()
        assert (matrix.rows(slice(15, 18)) == wanted[15:18]).all()
        assert (matrix.rows(order) == wanted[order]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_as_bitsandbytes_does(family: str, form: str, tmp_path: Path) -> None:
    stored, plain = folders(tmp_path, family, form)
    got = np.frombuffer(data_of(stored, tmp_path / "a.gguf"), np.float32)
    wanted = np.frombuffer(data_of(plain, tmp_path / "b.gguf"), np.float32)
    assert np.allclose(got, wanted, rtol=3e-7, atol=0)
    assert len(wanted) == len(data_of(TESTS / "reference" / family, tmp_path / "c.gguf")) // 4
    assert not np.array_equal(wanted, np.fromfile(tmp_path / "c.gguf", "f4")[-len(wanted) :])


@pytest.mark.parametrize("form", FORMS)
def test_from_torch_files_and_in_small_blocks(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, plain = folders(tmp_path, "gptj", form, torch=True)
    wanted = data_of(plain, tmp_path / "b.gguf", "q8_0")
    monkeypatch.setattr("infer_os.convert.blocks._BLOCK_BYTES", 4 * 64 * 5)
    got = np.frombuffer(data_of(stored, tmp_path / "a.gguf", "q8_0", verify=True), np.uint8)
    # a product that rounds otherwise may change a step here and there
    assert np.mean(got != np.frombuffer(wanted, np.uint8)) < 1e-3


@pytest.mark.parametrize("torch", [False, True])
def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: bool) -> None:
    stored, _ = folders(tmp_path, "gptj", "rows", torch=torch)
    local = data_of(stored, tmp_path / "a.gguf")
    with environment(tmp_path, monkeypatch) as desk:
        desk.server.repositories = {"someone/tiny-8bit": {"main": stored}}
        assert data_of(find_source("someone/tiny-8bit"), desk.target) == local


def changed(folder: Path, change: dict[str, NDArray[Any] | None]) -> None:
    """Replace tensors, or leave them out."""
    tensors = {**read_tensors(folder), **change}
    write_shards(folder, [{name: v for name, v in tensors.items() if v is not None}])


def test_what_does_not_fit(tmp_path: Path) -> None:
    stored, _ = folders(tmp_path, "gptj", "rows")
    stem = "transformer.h.0.attn.q_proj"
    kept = read_tensors(stored)
    for change, error, said in (
        ({f"{stem}.SCB": np.ones(3, "f4")}, FileFormatError, "[3] values in SCB; expected [64]"),
        ({f"{stem}.SCB": None}, PlanError, "has type I8, expected F32"),
        ({f"{stem}.weight_format": np.uint8(2)}, FileFormatError, "a layout of bitsandbytes' GPU"),
    ):
        changed(stored, {key: value if value is None else np.asarray(value)
                         for key, value in change.items()})  # fmt: skip
        refuse(stored, tmp_path, error, said)
        write_shards(stored, [kept])
    stored, _ = folders(tmp_path / "other", "gptj", "blocks")
    changed(stored, {f"{stem}.code": np.ones(16, "f4")})
    refuse(stored, tmp_path, FileFormatError, "values in absmax, code; expected [1, 256]")


def refuse(folder: Path, place: Path, error: type[ConvertError], said: str) -> None:
    with pytest.raises(error) as raised:
        data_of(folder, place / "never.gguf")
    assert said in str(raised.value)
    assert not (place / "never.gguf").exists()


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "by GPTQ with 4 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "by AWQ with 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by bitsandbytes with 4 bits"),
        ({"quant_method": "aqlm"}, "by aqlm "),
        ({}, "by an unnamed method"),
    ],
)
def test_other_quantized_weights_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: dict[str, Any], said: str
) -> None:
    folder = copy_checkpoint(TESTS / "reference" / "gptj", tmp_path / "folder")
    set_config(folder, quantization_config=stated)
    refuse(folder, tmp_path, UnsupportedError, said)
    with environment(tmp_path, monkeypatch) as desk:
        desk.server.repositories = {"someone/quantized": {"main": folder}}
        with pytest.raises(UnsupportedError, match=f"someone.quantized.*{said}"):
            find_shape("someone/quantized")
        with pytest.raises(UnsupportedError, match=said):
            data_of(find_source("someone/quantized"), desk.target)
        assert desk.server.files() == ["config.json"] * 2


def test_eight_bits_are_not_refused(tmp_path: Path) -> None:
    stored, _ = folders(tmp_path, "gptj", "rows")
    plain = data_of(stored, tmp_path / "a.gguf")
    stated = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    set_config(stored, quantization_config=stated)
    assert data_of(stored, tmp_path / "a.gguf") == plain
