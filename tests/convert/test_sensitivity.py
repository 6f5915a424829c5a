"""``--bits`` and ``--size``: what is measured, what is chosen by it, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import BUNDLED, PARALLEL, REPOSITORY, TESTS
from typer.testing import CliRunner

from infer_os.cli import app
from infer_os.convert import calibrated
from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.errors import ConvertError, FileFormatError, UnsupportedError
from infer_os.convert.mixture import WeightBudget
from infer_os.convert.pipeline import convert
from infer_os.convert.report import ConversionReport
from infer_os.convert.sensitivity import FILE, Sensitivity, measure_sensitivity, read_sensitivity
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.statistics import Statistics, read_statistics
from infer_os.errors import Error
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import Subject, WindowSettings, compare_models, cut_windows

MODEL = next(path for path in BUNDLED if path.name == "austen-6m")
CHAPTERS = (REPOSITORY / "models/bundled/held-out.txt").read_text().split("<|endoftext|>")
SHORT = TESTS / "reference" / "imatrix" / "text.txt"


def budgeted(
    target: Path, budget: WeightBudget, text: Path, source: Path = MODEL, threads: int = 1,
    **calibration: object,
) -> ConversionReport:  # fmt: skip
    settings = ConvertSettings(source, target, threads=threads, budget=budget)
    return convert_calibrated(settings, CalibrationSettings(text, **calibration), lambda name: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the bundled model in ``kept``, its weights in F32 and Q8_0, and 4 bits."""
    place = tmp_path_factory.mktemp("budget")
    text = place / "text.txt"
    text.write_text("".join(CHAPTERS[:4]))
    budgeted(place / "4.gguf", WeightBudget(4), text, method="auto", statistics=place / "kept")
    convert(ConvertSettings(MODEL, place / "f32.gguf", "f32"))
    convert(ConvertSettings(MODEL, place / "q8_0.gguf", "q8_0"))
    return place


@pytest.fixture(scope="module")
def statistics(folder: Path) -> Statistics:
    return read_statistics(folder / "kept")


@pytest.fixture(scope="module")
def found(statistics: Statistics) -> Sensitivity:
    return read_sensitivity(statistics, WeightBudget(4))


def divergence(reference: Path, candidate: Path) -> float:
    with LlamaModel(reference) as fine, LlamaModel(candidate) as coarse:
        tokens = fine.vocab.tokenize("".join(CHAPTERS[7:]), parse_special=False)
        windows = WindowSettings(1, 256, 8)
        return compare_models(Subject(fine), Subject(coarse), tokens, windows).mean_kl


@pytest.mark.parametrize("bits", [2.6, 2.75, 3.25, 4.0, 5.5])
def test_sizes_are_kept_and_predictions_hold(
    folder: Path, found: Sensitivity, bits: float, tmp_path: Path
) -> None:
    target = tmp_path / "it.gguf"
    settings = ConvertSettings(
        MODEL, target, statistics=folder / "kept", budget=WeightBudget(bits), threads=1
    )
    report = convert(settings)
    header = read_gguf_header(target)
    assert bits - 0.1 < header.bits_per_weight <= bits
    choice = found.choose(WeightBudget(bits), 0)
    types = {tensor.name: tensor.type.name for tensor in header.tensors}
    assert {name: types[name] for name in choice.types} == dict(choice.types)
    assert report.type == f"{bits:g}bit"
    assert divergence(folder / "f32.gguf", target) == pytest.approx(choice.loss, rel=0.6)


def test_a_choice_loses_less_than_one_type(folder: Path, tmp_path: Path) -> None:
    """At the size of a file of one type, the mixture is better than that type compensated."""
    one, mixed = tmp_path / "one.gguf", tmp_path / "mixed.gguf"
    settings = ConvertSettings(MODEL, one, "q3_k_m", statistics=folder / "kept", threads=1)
    convert(settings)
    bits = read_gguf_header(one).bits_per_weight
    convert(
        ConvertSettings(
            MODEL, mixed, statistics=folder / "kept", budget=WeightBudget(bits), threads=1
        )
    )
    assert read_gguf_header(mixed).weight_bytes <= read_gguf_header(one).weight_bytes
    reference = folder / "f32.gguf"
    assert divergence(reference, mixed) < 0.8 * divergence(reference, one)


def test_a_file_is_never_larger_than_its_size(folder: Path, tmp_path: Path) -> None:
    """Whatever is in the metadata, and wherever tensors begin; and the plan is exact."""
    settings = ConvertSettings(
        MODEL, tmp_path / "it.gguf", statistics=folder / "kept", threads=2, force=True
    )

    def planned(n_bytes: int) -> int:
        sized = replace(settings, budget=WeightBudget(n_bytes=n_bytes), dry_run=True)
        return convert(sized).n_bytes

    some = planned(2_600_000)
    for odd in range(0, 4000, 797):
        assert planned(some + odd) <= some + odd
    assert planned(some) == some
    assert some - 10_000 < planned(some - 1) < some
    for n_bytes in (some, 2_900_001):
        report = convert(replace(settings, budget=WeightBudget(n_bytes=n_bytes)))
        assert n_bytes - 5000 < report.n_bytes <= n_bytes
        assert settings.target.stat().st_size == report.n_bytes == planned(n_bytes)


def test_a_size_holds_in_the_run_that_measures(tmp_path: Path) -> None:
    text, source = tmp_path / "text.txt", tmp_path / "a model with quite a long name"
    text.write_text(SHORT.read_text() * 4)
    source.symlink_to(PARALLEL)
    kept = tmp_path / "kept"
    first = budgeted(
        tmp_path / "it.gguf", WeightBudget(5), text, source, method="auto", statistics=kept
    )
    for n_bytes in (first.n_bytes, first.n_bytes + 31):
        target = tmp_path / f"{n_bytes}.gguf"
        report = budgeted(
            target, WeightBudget(n_bytes=n_bytes), text, source, method="auto", statistics=kept
        )
        assert first.n_bytes - 1000 < target.stat().st_size == report.n_bytes <= n_bytes


def test_what_a_matrix_loses_is_the_trace(found: Sensitivity, statistics: Statistics) -> None:
    """Among the types of one matrix, losses are in the ratio of tr(E H E^T) over all its rows."""
    name = "blk.3.ffn_up.weight"
    with_f16 = gguf.GGUFReader(str(statistics.folder.parent / "q8_0.gguf"))
    tensor = next(t for t in with_f16.tensors if t.name == name)
    weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    (moments,) = statistics.second_moments(name)
    losses = {option.type: option.loss for option in found.options[name]}
    traces = {}
    for kind, code in (("q4_0", gguf.GGMLQuantizationType.Q4_0), ("q8_0", None)):
        if code is None:
            scales = np.ascontiguousarray(tensor.data.reshape(len(weights), -1, 34)[:, :, :2])
            steps = np.repeat(scales.view(np.float16)[:, :, 0].astype(np.float64), 32, 1)
            traces[kind] = float((steps**2 / 12 @ np.diag(moments)).sum())
        else:
            from infer_os.native.compensation import compensate_rows, make_feedback
            from infer_os.native.ggml_types import ggml_type_named

            feedback = make_feedback([moments], n_threads=1)
            assert feedback is not None
            rows = weights.astype(np.float32)
            data, _ = compensate_rows(rows, ggml_type_named(kind), feedback, n_threads=1)
            error = weights - gguf.quants.dequantize(data, code)
            traces[kind] = float(np.einsum("ri,ij,rj->", error, moments.astype(float), error))
    expected = traces["q4_0"] / traces["q8_0"]
    assert losses["q4_0"] / losses["q8_0"] == pytest.approx(expected, rel=0.1)


def test_the_measurement_does_not_depend_on_threads(
    folder: Path, found: Sensitivity, tmp_path: Path
) -> None:
    with LlamaModel(folder / "q8_0.gguf") as model:
        tokens = model.vocab.tokenize("".join(CHAPTERS[:4]), parse_special=False)
        windows = cut_windows(model, tokens, WindowSettings(1, 128, 1))
    one, two = (
        measure_sensitivity(
            folder / "q8_0.gguf", read_statistics(folder / "kept"), windows, tmp_path,
            n_threads=n, steps=lambda name: None,
        )
        for n in (1, 2)
    )  # fmt: skip
    assert one == two
    assert list(tmp_path.iterdir()) == []


def test_it_is_measured_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*given: object, **more: object) -> Sensitivity:
        raise AssertionError

    monkeypatch.setattr(calibrated, "measure_sensitivity", measure)
    target, text = tmp_path / "it.gguf", folder / "text.txt"
    report = budgeted(target, WeightBudget(4), text, method="auto", statistics=folder / "kept")
    start = read_gguf_header(target).data_offset
    before = folder / "4.gguf"
    assert target.read_bytes()[start:] == before.read_bytes()[start:]
    assert report.calibration is not None
    assert report.calibration.predicted_kl > 0


def test_a_text_too_short_for_gptq_still_decides(tmp_path: Path) -> None:
    target = tmp_path / "it.gguf"
    report = budgeted(target, WeightBudget(5), SHORT, PARALLEL, method="auto")
    assert read_gguf_header(target).bits_per_weight <= 5
    assert any("weighted by importance instead" in note for note in report.notes)


def test_too_small(folder: Path) -> None:
    settings = ConvertSettings(MODEL, Path("x"), statistics=folder / "kept", dry_run=True)
    for budget in (WeightBudget(2.0), WeightBudget(n_bytes=100_000)):
        with pytest.raises(UnsupportedError, match=r"smallest file of this model has 2\.\d\d bits"):
            convert(ConvertSettings(settings.source, budget=budget, statistics=folder / "kept"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record | {"version": 1}, "another version of infer-os measured it"),
        (lambda record: record | {"values": -1}, "damaged"),
        (lambda record: record | {"matrices": {}}, "damaged"),
        (lambda record: record | {"matrices": {"a": {"values": 32, "options": []}}}, "damaged"),
        (lambda record: {"matrices": record["matrices"]}, "damaged"),
        (lambda record: [], "damaged"),
    ],
)
def test_a_measurement_of_no_use(folder: Path, change: object, words: str, tmp_path: Path) -> None:
    record = json.loads((folder / "kept" / FILE).read_text())
    for path in (folder / "kept").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_text(json.dumps(change(record)))  # type: ignore[operator]
    with pytest.raises(FileFormatError, match=rf"sensitivity\.json: {words}"):
        convert(ConvertSettings(MODEL, budget=WeightBudget(4), statistics=tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "4"], "--bits 4: add --calibrate TEXT"),
        (["--size", "3MB"], "--size 3MB: add --calibrate TEXT"),
        (["--bits", "4", "--dry-run"], "with --dry-run: add --statistics DIR, a folder that an"),
        (["--bits", "4", "--type", "q4_0"], "--type and --bits: each decides the types"),
        (["--bits", "4", "--size", "1G"], "--bits and --size: each decides the types"),
        (["--bits", "0"], "--bits 0: expected a number from 2 to 8.5"),
        (["--bits", "4", "--imatrix", "x.gguf"], "--imatrix does not say what each matrix loses"),
        (["--bits", "4", "--calibrate", str(SHORT), "--method", "imatrix"],
         "--bits 4: needs the statistics of --method gptq"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(options: list[str], words: str, tmp_path: Path) -> None:
    target = tmp_path / "it.gguf"
    result = CliRunner().invoke(app, ["convert", str(PARALLEL), "-o", str(target), *options])
    assert isinstance(result.exception, Error)
    assert words in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_statistics_without_a_measurement(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "kept").glob("*.gguf"):
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ConvertError, match="add --calibrate TEXT once, which measures it"):
        convert(ConvertSettings(MODEL, budget=WeightBudget(4), statistics=tmp_path))


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL after the first layer's statistics, and after the measurement."""
    text, kept, target = tmp_path / "text.txt", tmp_path / "kept", tmp_path / "it.gguf"
    text.write_text(SHORT.read_text() * 4)
    words = [sys.executable, "-m", "infer_os.cli", "convert", PARALLEL, "--bits", 5, "--threads", 1,
             "--calibrate", text, "--memory", "1kB"]  # fmt: skip

    def start(*more: object) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([str(word) for word in (*words, *more)], **quiet)

    whole = tmp_path / "whole.gguf"
    assert start("--statistics", tmp_path / "undisturbed", "-o", whole).wait() == 0
    for seen in ("blk.0.moments.gguf", FILE):
        with start("--statistics", kept, "-o", target) as process:
            while not (kept / seen).exists():
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
        assert not target.exists() or target.read_bytes() == whole.read_bytes()
        target.unlink(missing_ok=True)
    assert start("--statistics", kept, "-o", target).wait() == 0
    assert target.read_bytes() == whole.read_bytes()
    undisturbed = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir()}
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == undisturbed
