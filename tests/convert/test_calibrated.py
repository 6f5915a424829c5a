"""Importance weights in the same command: what is written, what is reported, what is left."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import PARALLEL, TESTS

from infer_os.convert import calibrated as module
from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.errors import ConvertError, OutputError, SourceError, UnsupportedError
from infer_os.convert.imatrix import read_imatrix
from infer_os.convert.pipeline import convert
from infer_os.convert.report import ConversionReport
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import HubSource
from infer_os.native.gguf_file import read_gguf_header

TEXT = TESTS / "reference" / "imatrix" / "text.txt"


def calibrated(
    settings: ConvertSettings, text: Path = TEXT, matrix: Path | None = None
) -> tuple[ConversionReport, list[str]]:
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(name)

    report = convert_calibrated(settings, CalibrationSettings(text, matrix), step)
    return report, steps


def test_weights_are_used_reported_and_kept(tmp_path: Path) -> None:
    target, matrix = tmp_path / "out.gguf", tmp_path / "matrix.gguf"
    settings = ConvertSettings(PARALLEL, target, "q4_0", threads=1)
    report, steps = calibrated(settings, matrix=matrix)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["matrix.gguf", "out.gguf"]
    assert report.calibration is not None
    assert report.calibration.without.kl > 0
    assert report.calibration.with_weights.kl > 0
    assert report.calibration.with_weights.n_tokens == report.calibration.without.n_tokens > 0
    assert len(steps) == 6
    metadata = read_gguf_header(target).metadata
    assert metadata["quantize.imatrix.dataset"] == "text.txt"
    assert metadata["quantize.imatrix.chunks_count"] == report.calibration.chunks
    kept = read_imatrix(matrix)
    assert metadata["inferos.imatrix.sha256"] == kept.digest
    # the same matrix from its file gives the same bytes, and none gives others
    again, plain = tmp_path / "again.gguf", tmp_path / "plain.gguf"
    convert(ConvertSettings(PARALLEL, again, "q4_0", imatrix=matrix))
    convert(ConvertSettings(PARALLEL, plain, "q4_0"))
    start = read_gguf_header(again).data_offset
    assert again.read_bytes()[start:] == target.read_bytes()[read_gguf_header(target).data_offset :]
    assert plain.read_bytes()[-5000:] != again.read_bytes()[-5000:]


def test_a_rotation_is_calibrated_with(tmp_path: Path) -> None:
    settings = ConvertSettings(PARALLEL, tmp_path / "o.gguf", "q4_0", threads=1, fold_rotation=True)
    report, _ = calibrated(settings)
    assert report.calibration is not None
    assert report.calibration.with_weights.kl < 0.5


@pytest.mark.parametrize(
    ("kind", "text", "error"),
    [("f16", TEXT, UnsupportedError), ("q8_0", TEXT, UnsupportedError),
     ("q4_0", Path("no-such-text"), SourceError), ("q4_0", Path(__file__).parent, SourceError)],
)  # fmt: skip
def test_what_has_no_effect_or_cannot_be_read(
    kind: str, text: Path, error: type[ConvertError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        calibrated(ConvertSettings(PARALLEL, tmp_path / "out.gguf", kind), text)
    assert list(tmp_path.iterdir()) == []


def test_a_text_too_short(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("too short")
    with pytest.raises(SourceError, match="last tenth"):
        calibrated(ConvertSettings(PARALLEL, tmp_path / "o.gguf", "q4_0"), tmp_path / "text")


def test_an_output_that_exists_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        calibrated(ConvertSettings(PARALLEL, target, "q4_0"))
    assert target.read_text() == "mine"


def test_a_hub_model_must_be_kept(tmp_path: Path) -> None:
    settings = ConvertSettings(HubSource("some/model"), tmp_path / "out.gguf", "q4_0")
    with pytest.raises(UnsupportedError, match="--keep-source"):
        calibrated(settings)


def test_a_matrix_of_another_model(tmp_path: Path) -> None:
    matrix = TESTS / "reference" / "imatrix" / "llama.gguf"
    other = TESTS / "reference" / "bloom-prefix"
    with pytest.raises(SourceError, match="another model"):
        convert(ConvertSettings(other, tmp_path / "out.gguf", "q4_0", imatrix=matrix))
    assert list(tmp_path.iterdir()) == []


# ---- refused before anything is converted


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans may be made, files not."""
    original = module.convert

    def planned(settings: ConvertSettings, *arguments: Any) -> ConversionReport:
        assert settings.dry_run
        return original(settings, *arguments)

    monkeypatch.setattr(module, "convert", planned)


@pytest.mark.usefixtures("no_conversion")
def test_a_dry_run_has_nothing_to_calibrate(tmp_path: Path) -> None:
    settings = ConvertSettings(PARALLEL, tmp_path / "out.gguf", dry_run=True)
    with pytest.raises(UnsupportedError, match="--calibrate has no effect with --dry-run"):
        calibrated(settings)


@pytest.mark.usefixtures("no_conversion")
def test_a_short_text_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 150)
    with pytest.raises(SourceError, match=r"/text: too short: its last tenth.* has 15 bytes"):
        calibrated(ConvertSettings(PARALLEL, tmp_path / "o.gguf"), tmp_path / "text")


@pytest.mark.usefixtures("no_conversion")
def test_a_matrix_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, there = tmp_path / "o.gguf", tmp_path / "there.gguf"
    there.write_text("mine")
    (tmp_path / "x").mkdir()
    settings = ConvertSettings(PARALLEL, target)
    with pytest.raises(OutputError, match=r"there\.gguf: already exists; --force"):
        calibrated(settings, matrix=there)
    with pytest.raises(OutputError, match="-o and --imatrix name the same file"):
        calibrated(settings, matrix=tmp_path / "x" / ".." / "o.gguf")
    with pytest.raises(OutputError, match="no such folder"):
        calibrated(settings, matrix=tmp_path / "none" / "m.gguf")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and real(path, mode))
    with pytest.raises(OutputError, match="cannot be written"):
        calibrated(ConvertSettings(PARALLEL, tmp_path / "x" / "o"), matrix=tmp_path / "m.gguf")
    assert there.read_text() == "mine"


@pytest.mark.usefixtures("no_conversion")
def test_the_text_is_never_replaced(tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copy(TEXT, text)
    for target, matrix in ((text, None), (tmp_path / "o.gguf", text)):
        settings = ConvertSettings(PARALLEL, target, force=True)
        with pytest.raises(OutputError, match="name the same file"):
            calibrated(settings, text, matrix)
    assert text.read_bytes() == TEXT.read_bytes()


@pytest.mark.usefixtures("no_conversion")
def test_room_for_all_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ConvertSettings(PARALLEL, tmp_path / "o.gguf", "q4_0")
    sizes = {
        kind: convert(ConvertSettings(PARALLEL, type=kind, dry_run=True)).n_bytes
        for kind in ("q8_0", "q4_0")
    }
    needed = sizes["q8_0"] + 2 * sizes["q4_0"]
    real = os.statvfs(tmp_path)

    def with_room(n_bytes: int) -> None:
        fields = list(real)
        fields[0], fields[1], fields[4] = 1, 1, n_bytes
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))

    with_room(needed - 1)
    with pytest.raises(OutputError, match="too full"):
        calibrated(settings)
    with_room(needed)
    with pytest.raises(AssertionError):  # it begins
        calibrated(settings)


def test_a_working_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "working_folder", full)
    with pytest.raises(OutputError, match=r"o\.gguf: cannot be written: No space left"):
        calibrated(ConvertSettings(PARALLEL, tmp_path / "o.gguf"))


def test_the_model_is_complete_when_the_matrix_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "write_imatrix", full)
    target = tmp_path / "o.gguf"
    with pytest.raises(OutputError, match=r"--imatrix .*m\.gguf: .*o\.gguf is complete"):
        calibrated(ConvertSettings(PARALLEL, target, threads=1), matrix=tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["o.gguf"]


def test_weights_of_rotated_columns_are_for_rotated_columns(tmp_path: Path) -> None:
    first, matrix, again = (tmp_path / name for name in ("1.gguf", "m.gguf", "2.gguf"))
    settings = ConvertSettings(PARALLEL, first, "q4_0", threads=1, fold_rotation=True)
    calibrated(settings, matrix=matrix)
    assert read_imatrix(matrix).rotation == "hadamard"
    with pytest.raises(UnsupportedError, match="collected with --fold-rotation"):
        convert(ConvertSettings(PARALLEL, again, "q4_0", imatrix=matrix))
    convert(ConvertSettings(PARALLEL, again, "q4_0", imatrix=matrix, fold_rotation=True))
    start = read_gguf_header(again).data_offset
    assert again.read_bytes()[start:] == first.read_bytes()[read_gguf_header(first).data_offset :]
