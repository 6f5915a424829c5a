"""Compensated conversion: what it gains, what it falls back to, and that it can be continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import BUNDLED, PARALLEL, REPOSITORY, TESTS
from typer.testing import CliRunner

from infer_os.cli import app
from infer_os.convert import collecting
from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.collecting import collect_statistics
from infer_os.convert.errors import (
    ConvertError,
    FileFormatError,
    OutputError,
    SourceError,
    UnsupportedError,
)
from infer_os.convert.imatrix import read_imatrix
from infer_os.convert.pipeline import convert
from infer_os.convert.report import ConversionReport
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.statistics import read_statistics
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import Subject, WindowSettings, compare_models

SHORT = TESTS / "reference" / "imatrix" / "text.txt"
# rows of 256 values do not divide the reference's rows of 64: the types of small blocks remain
KIND = "q4_0"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of ten tokens for each of the 256 columns of the widest matrix."""
    path = tmp_path / "text.txt"
    path.write_text(SHORT.read_text() * 4)
    return path


def compensated(
    target: Path, text: Path, kind: str = KIND, source: Path = PARALLEL, **calibration: object
) -> ConversionReport:
    settings = ConvertSettings(source, target, kind, threads=1)
    given = CalibrationSettings(text, **{"method": "gptq", **calibration})
    return convert_calibrated(settings, given, lambda name: None)


def weights_of(path: Path) -> bytes:
    return path.read_bytes()[read_gguf_header(path).data_offset :]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_halves_what_an_importance_matrix_leaves(tmp_path: Path) -> None:
    documents = Path(REPOSITORY / "models" / "bundled" / "held-out.txt").read_text()
    chapters = documents.split("<|endoftext|>")
    text = tmp_path / "text.txt"
    text.write_text("".join(chapters[:7]))
    model = next(path for path in BUNDLED if path.name == "austen-6m")
    made = {name: tmp_path / f"{name}.gguf" for name in ("gptq", "imatrix", "f32")}
    kept, matrix = tmp_path / "kept", tmp_path / "matrix.gguf"
    compensated(made["gptq"], text, source=model, statistics=kept, matrix=matrix)
    convert(ConvertSettings(model, made["imatrix"], KIND, imatrix=matrix))
    convert(ConvertSettings(model, made["f32"], "f32"))
    assert made["gptq"].stat().st_size == pytest.approx(made["imatrix"].stat().st_size, rel=1e-3)
    kl = {}
    with LlamaModel(made["f32"]) as reference:
        tokens = reference.vocab.tokenize("".join(chapters[7:]), parse_special=False)
        for name in ("gptq", "imatrix"):
            with LlamaModel(made[name]) as candidate:
                windows = WindowSettings(1, 256, 12)
                found = compare_models(Subject(reference), Subject(candidate), tokens, windows)
            kl[name] = found.mean_kl
    assert kl["gptq"] < 0.65 * kl["imatrix"]


def test_the_bytes_do_not_depend_on_threads_or_memory(text: Path, tmp_path: Path) -> None:
    results = []
    for n_threads, memory in ((1, 1 << 30), (2, 1 << 30), (2, 1)):
        place = tmp_path / f"{n_threads}-{memory}"
        settings = ConvertSettings(PARALLEL, place.with_suffix(".gguf"), KIND, threads=n_threads)
        given = CalibrationSettings(text, None, "gptq", place, memory)
        report = convert_calibrated(settings, given, lambda name: None)
        assert report.calibration is not None
        assert report.calibration.method == "gptq"
        results.append((settings.target.read_bytes(), files_of(place)))
    assert results[0] == results[1] == results[2]
    assert sorted(results[0][1]) == [
        f"{n}.moments.gguf" for n in ("blk.0", "blk.1", "embedding", "output")
    ]


def test_several_types_come_from_one_pass(text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first = tmp_path / "first.gguf"
    compensated(first, text, statistics=kept)
    metadata = read_gguf_header(first).metadata
    assert metadata["inferos.quantize.method"] == "gptq"
    assert metadata["quantize.imatrix.dataset"] == "text.txt"
    for kind in (KIND, "q8_0", "iq4_nl"):
        again, plain = tmp_path / f"{kind}.gguf", tmp_path / f"{kind}-plain.gguf"
        report = convert(ConvertSettings(PARALLEL, again, kind, statistics=kept, verify=True))
        convert(ConvertSettings(PARALLEL, plain, kind))
        assert weights_of(again) != weights_of(plain)
        assert len(weights_of(again)) == len(weights_of(plain))
        assert any("blocks equal to their source's" in note for note in report.notes)
    assert weights_of(tmp_path / f"{KIND}.gguf") == weights_of(first)


def test_too_few_tokens_fall_back_to_the_importance_matrix(tmp_path: Path) -> None:
    target, matrix = tmp_path / "out.gguf", tmp_path / "matrix.gguf"
    report = compensated(target, SHORT, matrix=matrix)
    line = "gptq: blk.0.ffn_down.weight and 1 more are weighted by importance instead: only"
    assert sum(note.startswith(line) for note in report.notes) == 1
    weighted = tmp_path / "weighted.gguf"
    convert(ConvertSettings(PARALLEL, weighted, KIND, imatrix=matrix))
    same = {
        name: tensor_bytes(target, name) == tensor_bytes(weighted, name)
        for name in ("blk.0.ffn_down.weight", "token_embd.weight", "blk.0.ffn_up.weight")
    }
    # what is read of the embedding is known without a text
    assert same == {"blk.0.ffn_down.weight": True, "token_embd.weight": False,
                    "blk.0.ffn_up.weight": False}  # fmt: skip


def tensor_bytes(path: Path, name: str) -> bytes:
    header = read_gguf_header(path)
    tensor = next(t for t in header.tensors if t.name == name)
    start = header.data_offset + tensor.offset
    return path.read_bytes()[start : start + tensor.n_bytes]


def test_auto_takes_what_the_text_allows(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text(SHORT.read_text()[:800])
    long, short, weighted = (tmp_path / f"{name}.gguf" for name in ("long", "short", "weighted"))
    assert compensated(long, text, method="auto").calibration.method == "gptq"
    report = compensated(short, tmp_path / "tiny.txt", method="auto", matrix=tmp_path / "m")
    assert report.calibration.method == "imatrix"
    assert "method: auto: tiny.txt is too short for gptq; weighted instead" in report.notes
    convert(ConvertSettings(PARALLEL, weighted, KIND, imatrix=tmp_path / "m"))
    assert weights_of(short) == weights_of(weighted)
    # a type without a compensated form
    report = compensated(tmp_path / "5.gguf", text, "q5_0", method="auto")
    assert report.calibration.method == "imatrix"


def test_what_cannot_be_compensated_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text(SHORT.read_text()[:800])
    target = tmp_path / "out.gguf"
    cases: list[tuple[type[ConvertError], str, Callable[[], object]]] = [
        (SourceError, r"tiny\.txt: too short for gptq: \d+ tokens; the narrowest matrix needs 640",
         lambda: compensated(target, tmp_path / "tiny.txt")),
        (SourceError, "too short for gptq",
         lambda: compensated(target, tmp_path / "tiny.txt", "q8_0", method="auto")),
        (UnsupportedError, "--method gptq has no effect with --type f16",
         lambda: compensated(target, text, "f16")),
        (UnsupportedError, "--calibrate has no effect with --type f16",
         lambda: compensated(target, text, "f16", method="auto")),
        (UnsupportedError, "--method gtpq: unknown; there are auto, gptq, imatrix",
         lambda: compensated(target, text, method="gtpq")),
        (UnsupportedError, "--statistics has no effect with --method imatrix",
         lambda: compensated(target, text, method="imatrix", statistics=tmp_path / "s")),
        (UnsupportedError, "--statistics has no effect with --type bf16",
         lambda: convert(ConvertSettings(PARALLEL, target, "bf16", statistics=tmp_path / "s"))),
        (UnsupportedError, "--imatrix and --statistics",
         lambda: ConvertSettings(PARALLEL, imatrix=text, statistics=tmp_path)),
        (FileFormatError, r"--statistics .*: no statistics there",
         lambda: convert(ConvertSettings(PARALLEL, target, statistics=tmp_path))),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tiny.txt"]


def test_a_killed_run_continues(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    compensated(first, text, statistics=whole)
    written: list[str] = []
    original = collecting.write_layer

    def second_fails(path: Path, *arguments: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, *arguments)

    monkeypatch.setattr(collecting, "write_layer", second_fails)
    with pytest.raises(KeyboardInterrupt):
        compensated(again, text, statistics=part, memory=1)
    assert [path.name for path in part.iterdir()] == written
    assert not again.exists()
    monkeypatch.setattr(collecting, "write_layer", original)
    begun = (part / written[0]).stat().st_mtime_ns
    compensated(again, text, statistics=part, memory=1)
    assert (part / written[0]).stat().st_mtime_ns == begun
    assert files_of(part) == files_of(whole)
    assert again.read_bytes() == first.read_bytes()


def test_statistics_of_another_text_stay_without_force(text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    compensated(tmp_path / "1.gguf", text, statistics=kept)
    before = files_of(kept)
    with pytest.raises(OutputError, match="another model or text; --force"):
        compensated(tmp_path / "2.gguf", SHORT, statistics=kept)
    assert files_of(kept) == before
    settings = ConvertSettings(PARALLEL, tmp_path / "2.gguf", KIND, threads=1, force=True)
    given = CalibrationSettings(SHORT, None, "gptq", kept)
    convert_calibrated(settings, given, lambda name: None)
    assert files_of(kept).keys() == before.keys()
    assert files_of(kept) != before


def test_damaged_statistics_are_named(text: Path, tmp_path: Path) -> None:
    kept, target = tmp_path / "kept", tmp_path / "out.gguf"
    compensated(tmp_path / "1.gguf", text, statistics=kept)
    layer = kept / "blk.1.moments.gguf"
    sound = layer.read_bytes()
    layer.write_bytes(sound[:-5000])
    with pytest.raises(FileFormatError, match=r"blk\.1\.moments\.gguf"):
        convert(ConvertSettings(PARALLEL, target, KIND, statistics=kept))
    layer.write_bytes(b"GGUF?")
    with pytest.raises(FileFormatError, match=r"blk\.1\.moments\.gguf"):
        read_statistics(kept)
    layer.write_bytes((tmp_path / "1.gguf").read_bytes())
    with pytest.raises(FileFormatError, match="not statistics of --statistics"):
        read_statistics(kept)
    layer.write_bytes(sound.replace(b"text.txt", b"other.md"))
    with pytest.raises(FileFormatError, match="of different runs"):
        read_statistics(kept)
    other = TESTS / "reference" / "bloom-prefix"
    layer.write_bytes(sound)
    with pytest.raises(SourceError, match="another model"):
        convert(ConvertSettings(other, target, KIND, statistics=kept))
    assert not target.exists()


def test_statistics_without_a_factor_are_said(text: Path, tmp_path: Path) -> None:
    kept, target = tmp_path / "kept", tmp_path / "out.gguf"
    compensated(tmp_path / "1.gguf", text, statistics=kept)
    layer = kept / "blk.0.moments.gguf"
    header = read_gguf_header(layer)
    square = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight.0")
    data = bytearray(layer.read_bytes())
    start = header.data_offset + square.offset
    data[start : start + square.n_bytes] = bytes(square.n_bytes)
    layer.write_bytes(data)
    report = convert(ConvertSettings(PARALLEL, target, KIND, statistics=kept))
    line = "gptq: blk.0.ffn_down.weight: its statistics have no factor; weighted instead"
    assert line in report.notes


def test_rotated_columns_have_their_own_statistics(text: Path, tmp_path: Path) -> None:
    kept, target = tmp_path / "kept", tmp_path / "out.gguf"
    settings = ConvertSettings(PARALLEL, target, KIND, threads=1, fold_rotation=True)
    given = CalibrationSettings(text, None, "gptq", kept)
    convert_calibrated(settings, given, lambda name: None)
    with pytest.raises(UnsupportedError, match=r"--statistics .*collected with --fold-rotation"):
        convert(ConvertSettings(PARALLEL, tmp_path / "2.gguf", KIND, statistics=kept))


def test_the_importance_matrix_is_kept_too(text: Path, tmp_path: Path) -> None:
    matrix, kept = tmp_path / "matrix.gguf", tmp_path / "kept"
    compensated(tmp_path / "1.gguf", text, matrix=matrix, statistics=kept)
    assert read_imatrix(matrix).digest == read_statistics(kept).importance.digest


def test_a_folder_that_cannot_be_made(text: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--statistics .*: cannot be made: Not a directory"):
        compensated(tmp_path / "1.gguf", text, statistics=text / "kept")
    model = tmp_path / "f32.gguf"
    convert(ConvertSettings(PARALLEL, model, "f32"))
    with pytest.raises(SourceError, match="do not fill a window"):
        collect_statistics(model, "short", tmp_path / "s", dataset="it", n_threads=1)
    assert not (tmp_path / "s").exists()


def test_the_command_line(text: Path, tmp_path: Path) -> None:
    def run(*options: object) -> str:
        words = ["convert", PARALLEL, "--force", "--threads", 1, "-o", tmp_path / "o", *options]
        result = CliRunner().invoke(app, [str(word) for word in words])
        return str(result.exception) if result.exception else result.output

    kept = tmp_path / "kept"
    assert "with gptq" in run("--calibrate", text, "--statistics", kept, "--memory", "1kB")
    assert "as q8_0" in run("--statistics", kept, "--type", "q8_0")
    message = "--method gptq has no effect without --calibrate; drop it"
    assert run("--method", "gptq") == message
    message = "--memory has no effect without --calibrate; drop it"
    assert run("--memory", "2G") == message
    assert "--memory much: expected a size" in run("--calibrate", text, "--memory", "much")
