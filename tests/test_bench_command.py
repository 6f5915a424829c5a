"""The commands bench and eval: rows, JSON, the page, and what is refused before it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import PARALLEL, TESTS, Converter
from in_process import Cli, runner

from infer_os.commands import loading
from infer_os.measure import bench, evaluation, plots
from infer_os.measure.arms import ArmResult
from infer_os.measure.rows import Measurement
from infer_os.models.bundled import HELD_OUT, TARGET
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.store.wish import ModelWish


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache: the bandwidth is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Run a command in this process."""
    monkeypatch.setenv("INFER_OS_CACHE", str(cache))

    return runner(monkeypatch, capfdbinary)


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any measurement is a failure."""

    def measure(*_: object, **__: object) -> Any:
        raise AssertionError("measured")

    for name in ("measure_depths", "measure_batches", "measure_growth", "run_in_turns"):
        monkeypatch.setattr(bench, name, measure)
    monkeypatch.setattr(evaluation, "measure_quality", measure)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """A scripted engine in the place of a model."""
    engine = FakeEngine(saying("x" * 5000), 900)
    monkeypatch.setattr(loading, "load_engine", lambda path, settings: (engine, 0.25))
    found = [Measurement("batch_decode", "tokens/s", 5.0, (("sequences", n),)) for n in (1, 2)]
    monkeypatch.setattr(bench, "measure_batches", lambda *_: found)
    monkeypatch.setattr(bench, "planned_files", lambda request, wish, *_: (wish, request.settings))
    return engine


def test_rows_tables_and_the_page(run: Cli, fake: FakeEngine, tmp_path: Path) -> None:
    arguments = ["bench", "m.gguf", "--depths", "0,64", "--repeats", 2, "--prompt-tokens", 16]
    rows, folder = tmp_path / "rows", tmp_path / "page"
    result = run(*arguments, "--json", "--rows", rows, "--report", folder)
    assert result.code == 0
    found = json.loads(result.out)["rows"]
    assert [json.loads(line) for line in rows.read_text().splitlines()] == found
    metrics = {row["metric"] for row in found}
    assert {"load", "first_token", "decode", "prefill", "batch_decode", "memory"} <= metrics
    load = next(row for row in found if row["metric"] == "load")
    assert (load["median"], load["repeats"]) == (0.25, 2)
    assert load["command"].startswith("infer-os bench m.gguf --depths 0,64")
    assert "<h2>Depth</h2>" in (folder / "index.html").read_text()
    shown = run(*arguments)
    assert "decode, tokens/s" in shown.out
    assert "energy is left out" in shown.err


def test_the_usual_depths_end_with_the_context(run: Cli, fake: FakeEngine) -> None:
    result = run("bench", "m.gguf", "--repeats", 1, "--json")
    found = json.loads(result.out)
    depths = [r["labels"]["depth"] for r in found["rows"] if r["metric"] == "decode"]
    assert depths == [0, 512, 900 - 160 - 1]
    assert any("a larger --context" in note for note in found["notes"])


def test_a_real_model(run: Cli, converted: Converter) -> None:
    result = run(
        "bench", converted(), "--depths", "0,16", "--batch", "1,2", "--repeats", 1,
        "--prompt-tokens", 8, "--tokens", 4, "--compare-kv", "f16,f16:24,q8_0", "--threads", 1,
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    kvs = {row["labels"]["kv"] for row in rows if row["metric"] == "decode"}
    assert kvs == {"f16", "f16:24,q8_0"}
    weights = next(r for r in rows if r["metric"] == "memory" and r["labels"]["part"] == "weights")
    assert weights["median"] == pytest.approx(converted().stat().st_size, rel=0.2)
    assert 0 < next(r["median"] for r in rows if r["metric"] == "bandwidth_share") < 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--depths", "x"], "--depths x"),
        (["--depths", "900"], "--depths 900"),
        (["--batch", "0"], "--batch 0"),
        (["--batch", "257"], "--batch 257"),
        (["--repeats", "0"], "--repeats 0"),
        (["--tokens", "0"], "--tokens 0"),
        (["--compare-kv", "q9"], "--compare-kv q9"),
        (["--compare-kv", "f16", "--kv", "f16"], "--kv and --compare-kv"),
        (["--baseline", "x.gguf"], "--baseline has no effect without --techniques"),
        (["--techniques", "--batch", "2"], "--batch has no effect with --techniques"),
        (["--techniques", "--kv", "q8_0"], "--kv has no effect with --techniques"),
        (["--techniques", "--lora", "x"], "--lora has no effect with --techniques"),
        (["--type", "q99"], "unknown type 'q99'"),
        (["--rows", "/no/such/folder/rows"], "--rows /no/such/folder/rows: cannot be written"),
        (["--report", "/dev/null/x"], "--report /dev/null/x: cannot be written"),
    ],
)
@pytest.mark.usefixtures("no_measuring")
def test_bad_options_are_refused_first(
    run: Cli, monkeypatch: pytest.MonkeyPatch, options: list[str], part: str
) -> None:
    engine = FakeEngine(saying("x"), 900)
    monkeypatch.setattr(loading, "load_engine", lambda path, settings: (engine, 0.1))
    monkeypatch.setattr(bench, "planned_files", lambda request, wish, *_: (wish, request.settings))
    assert part in run("bench", "m.gguf", *options).user_error


@pytest.mark.usefixtures("no_measuring")
def test_files_that_do_not_go_together(run: Cli, converted: Converter, tmp_path: Path) -> None:
    assert "no such file" in run("bench", tmp_path / "no.gguf", "--techniques").user_error
    other = converted(TARGET)
    result = run("bench", converted(), "--techniques", "--baseline", other)
    assert "it is not a file of the same model" in result.user_error
    assert (
        "--draft lookup: without MODEL"
        in run("bench", "--techniques", "--draft", "lookup").user_error
    )
    result = run("bench", converted(), "--batch", 2, "--tokens", 5000, "--prompt-tokens", 1)
    assert "no room for" in result.user_error


@pytest.mark.usefixtures("no_measuring")
def test_a_page_without_matplotlib(
    run: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    for command in ("bench", "eval"):
        assert 'pip install "infer-os[plot]"' in run(command, "--report", tmp_path / "r").user_error


# ---- techniques


def test_techniques_of_the_bundled_pair(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    result = ArmResult(8, 1.0, 1.0, 0.1, 1000, 100, 2000, 900, 400, 100, 50, 10, 5, 4)

    def turns(arms: Any, tasks: Any, progress: Any) -> dict[str, list[ArmResult]]:
        seen.update(arms={arm.name: arm for arm in arms}, tasks=tasks)
        return {arm.name: [result] * (len(tasks) - 1) for arm in arms}

    monkeypatch.setattr(bench, "run_in_turns", turns)
    done = run("bench", "--techniques", "--depths", "100", "--tokens", 8, "--repeats", 2)
    assert done.code == 0, done.err
    assert {"baseline", "speculative", "quantized", "all"} <= set(seen["arms"])
    assert seen["arms"]["baseline"].path.name == "austen-6m-f16.gguf"
    assert seen["arms"]["all"].path.name == "austen-6m-q8_0.gguf"
    assert "austen-draft" in seen["arms"]["all"].settings.draft
    tasks = seen["tasks"]
    assert [(task.n_prompt, task.n_decode) for task in tasks] == [(100, 8)] * 3
    assert len({task.text for task in tasks}) == 3
    assert "speculative decoding" in done.out
    assert "Not reached, because:" in done.out
    assert "100 prompt tokens, then 8" in done.err


def test_random_weights_take_acceptance_from_the_bundled_pair(
    run: Cli, monkeypatch: pytest.MonkeyPatch, converted: Converter
) -> None:
    header = bench.read_model_header(converted())
    header.metadata[bench.RANDOM_KEY] = True
    monkeypatch.setattr(bench, "read_model_header", lambda path: header)
    result = ArmResult(8, 1.0, 1.0, 0.1, 1000, 100, 2000, 900, 400, 100, 50, drafted=10,
                       accepted=4, rounds=4, acceptance=0.75, guess_s=0.01,
                       steps=((1, 0.1), (4, 0.2)))  # fmt: skip
    calls: list[list[str]] = []

    def turns(arms: Any, tasks: Any, progress: Any) -> dict[str, list[ArmResult]]:
        calls.append([arm.name for arm in arms])
        return {arm.name: [result] for arm in arms}

    monkeypatch.setattr(bench, "run_in_turns", turns)
    done = run("bench", converted(), "--techniques", "--depths", "20", "--repeats", 1,
               "--tokens", 4, "--prompt-tokens", 4, "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert calls == [["baseline", "zero-copy", "staged-kv", "memory", "all"],
                     ["baseline", "speculative"]]  # fmt: skip
    found = json.loads(done.out)
    row = next(r for r in found["rows"] if r["labels"].get("projected"))
    assert "random weights" in row["labels"]["reason"]
    assert "the bundled pair" in row["labels"]["reason"]
    assert "the rate of right guesses (75 %)" in row["labels"]["reason"]
    assert any("a GGUF file keeps its type" in note for note in found["notes"])


# ---- eval


def test_eval_of_types_and_caches(run: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(HELD_OUT.read_text()[:3000])
    arguments = ["eval", TARGET, "--text", text, "--types", "q8_0,q4_0", "--kv", "f16,q4_0",
                 "--window", 64, "--windows", 3, "--threads", 1]  # fmt: skip
    found = json.loads(run(*arguments, "--json").out)
    kl = {(r["labels"]["type"], r["labels"]["kv"]): r["median"]
          for r in found["rows"] if r["metric"] == "kl"}  # fmt: skip
    assert list(kl) == [(t, k) for t in ("q8_0", "q4_0") for k in ("f16", "q4_0")]
    assert kl["q8_0", "f16"] < kl["q4_0", "f16"] < kl["q4_0", "q4_0"]
    assert found["kl"] == kl["q8_0", "f16"]
    assert 0.9 < found["top1"] <= 1
    assert 20 < found["perplexity"] < 120
    shown = run(*arguments)
    assert "bits per weight" in shown.out
    assert "the reference is austen-6m as F32" in shown.err


def test_adapters_are_added_to_what_is_converted(run: Cli, cache: Path, tmp_path: Path) -> None:
    folder = TESTS / "reference" / "adapters" / "neox-parallel"
    text = tmp_path / "text"
    text.write_text("some words, and then some more of them. " * 40)
    options = ["--text", text, "--window", 32, "--threads", 1, "--json", "--types", "q8_0"]
    plain, tuned, against = (
        json.loads(run("eval", PARALLEL, *options, *more).out)
        for more in ([], ["--lora", folder], ["--lora", folder, "--reference", PARALLEL])
    )
    assert tuned["perplexity"] != plain["perplexity"]
    # what is compared is what a type loses, unless a reference is named
    assert tuned["kl"] < 0.1 * against["kl"]
    result = run(
        "bench", PARALLEL, "--lora", folder, "--depths", "0", "--batch", "1", "--repeats", 1,
        "--prompt-tokens", 8, "--tokens", 4, "--threads", 1, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert len(list(cache.rglob("neox-parallel-*+lora-*.gguf"))) == 1
    assert "--lora adds an adapter to a MODEL" in run("bench", "--lora", folder).user_error


def test_eval_of_files(run: Cli, converted: Converter, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("some words, and then some more of them. " * 40)
    one, two = converted(), converted(kind="q8_0")
    options = ["--text", text, "--window", 32, "--threads", 1, "--json"]
    alone = json.loads(run("eval", one, two, *options).out)
    assert (alone["kl"], alone["top1"]) == (None, None)
    assert [r["labels"]["type"] for r in alone["rows"] if r["metric"] == "perplexity"] == [
        one.name, two.name,
    ]  # fmt: skip
    against = json.loads(run("eval", two, "--reference", one, *options).out)
    assert against["kl"] > 0
    folder = json.loads(run("eval", two, "--reference", PARALLEL, *options).out)
    assert folder["kl"] == pytest.approx(against["kl"], rel=0.1)


@pytest.mark.usefixtures("no_measuring")
def test_what_eval_refuses_first(run: Cli, converted: Converter, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("too short")
    gguf = converted()
    cases: list[tuple[list[object], str]] = [
        ([gguf], "--text FILE is needed"),
        ([gguf, "--text", tmp_path / "no"], "cannot be read"),
        ([gguf, "--text", text, "--window", 64], "the text is too short"),
        ([gguf, "--text", text, "--types", "q8_0"], "is a GGUF file and keeps its type"),
        ([gguf, gguf, "--text", text], "named twice"),
        ([gguf, PARALLEL, "--text", text], "evaluate a folder alone"),
        ([gguf, "--text", text, "--lora", "x"], "is a GGUF file; adapters are added to weights"),
        (["--types", "q99"], "unknown type 'q99'"),
        (["--kv", "q99"], "unknown type q99"),
        (["--kv", "f16:64"], "it ends at 64 tokens"),
        (["--window", "3"], "--window 3"),
        (["--reference", converted()], "another vocabulary"),
        (["--reference", tmp_path / "no.gguf"], "no such file"),
    ]
    for arguments, part in cases:
        assert part in run("eval", *arguments).user_error, arguments


def test_a_wish_is_checked() -> None:
    from infer_os.convert.errors import UnsupportedError

    with pytest.raises(UnsupportedError):
        ModelWish("x", "q99")
