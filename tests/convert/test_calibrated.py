"""Importance weights in the same command: what is written, what is reported, what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import PARALLEL, TESTS

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
