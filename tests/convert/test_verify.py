"""--verify: a file whose header, bytes or logits are wrong never takes its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PARALLEL, REFERENCES, Converter

from infer_os.convert import pipeline, verify
from infer_os.convert.errors import VerifyError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.verify import verify_header, verify_logits
from infer_os.native.gguf_file import read_gguf_header


def verified(folder: Path, target: Path, kind: str = "q8_0") -> str:
    report = convert(ConvertSettings(folder, target, kind, verify=True))
    assert report.verified
    (note,) = [note for note in report.notes if note.startswith("verify: ")]
    return note


@pytest.mark.parametrize("kind", ["f32", "q4_0", "q4_k_m"])
@pytest.mark.parametrize("folder", REFERENCES, ids=lambda path: path.name)
def test_what_is_written_passes(folder: Path, kind: str, tmp_path: Path) -> None:
    assert "computed with finite logits" in verified(folder, tmp_path / "m.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_the_first_and_the_last_block_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infer_os.convert import blocks

    few = int(verified(PARALLEL, tmp_path / "a.gguf").split(", ")[1].split()[0])
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 3000)
    many = int(verified(PARALLEL, tmp_path / "b.gguf").split(", ")[1].split()[0])
    n_matrices = sum(len(t.shape) > 1 for t in read_gguf_header(tmp_path / "a.gguf").tensors)
    assert many == few + n_matrices
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("end", ["first", "last"])
def test_a_byte_that_is_not_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    real = pipeline.GgufOutput.write

    def wrong(self: Any, tensor: Any, at: int, data: Any) -> None:
        data = data.copy()
        if tensor.rule.target == "blk.1.ffn_up.weight":
            data.reshape(-1)[0 if end == "first" else -1] ^= 1
        real(self, tensor, at, data)

    monkeypatch.setattr(pipeline.GgufOutput, "write", wrong)
    with pytest.raises(VerifyError, match=r"'blk\.1\.ffn_up\.weight': the written bytes"):
        verified(PARALLEL, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    convert(ConvertSettings(PARALLEL, tmp_path / "m.gguf"))


def spoiled(source: Path, target: Path, name: str, value: float) -> Path:
    """A copy of an F32 file, one tensor filled with a value."""
    header = read_gguf_header(source)
    (tensor,) = [tensor for tensor in header.tensors if tensor.name == name]
    data = bytearray(source.read_bytes())
    begin = header.data_offset + tensor.offset
    data[begin : begin + tensor.n_bytes] = np.full(tensor.n_bytes // 4, value, "<f4").tobytes()
    target.write_bytes(data)
    return target


def test_logits_that_are_no_numbers(converted: Converter, tmp_path: Path) -> None:
    path = spoiled(converted(PARALLEL, "f32"), tmp_path / "m.gguf", "output_norm.bias", np.nan)
    with pytest.raises(VerifyError, match="logits that are NaN or infinite"):
        verify_logits(path, 1)


def test_logits_that_are_all_the_same(converted: Converter, tmp_path: Path) -> None:
    path = spoiled(converted(PARALLEL, "f32"), tmp_path / "m.gguf", "output.weight", 0.0)
    with pytest.raises(VerifyError, match="the same logit for every token"):
        verify_logits(path, 1)


def test_a_file_that_llama_cpp_does_not_load(converted: Converter, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = converted(PARALLEL, "f32").read_bytes()
    path.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(VerifyError, match=r"llama\.cpp does not run the written file"):
        verify_logits(path, 1)


def test_a_header_that_is_not_the_plans(
    converted: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    monkeypatch.setattr(verify, "verify_logits", lambda *args: 0)
    monkeypatch.setattr(pipeline, "verify_header", lambda path, plan: plans.append(plan))
    verified(PARALLEL, tmp_path / "m.gguf", "q8_0")
    verify_header(tmp_path / "m.gguf", plans[0])
    with pytest.raises(VerifyError, match=r"has \('token_embd\.weight', .*'f16'\), but .*'q8_0'"):
        verify_header(converted(PARALLEL, "f16"), plans[0])
    with pytest.raises(VerifyError, match="does not read back"):
        verify_header(PARALLEL / "config.json", plans[0])
