"""The commands plan and system, and a run that is stopped by its plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import TEMPLATES, checkpoint_folder
from helpers import PARALLEL, Converter
from in_process import Cli, Outcome, runner
from on_terminal import shown

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.catalog import CATALOG
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.kv.schedule import KvSchedule, KvStage
from infer_os.runtime.plan import budget
from infer_os.runtime.plan.choice import FLOOR, headroom
from infer_os.runtime.plan.memory_plan import Budget, MemoryShortage
from infer_os.runtime.prepare import plan_file
from infer_os.runtime.settings import EngineSettings
from infer_os.store.planning import (
    RANKED,
    PlanRequest,
    RankedModel,
    find_shape,
    make_answer,
    rank,
    recommend,
)
from infer_os.terminal.render_plan import run_command

PLAN_KEYS = {
    "weights", "kv", "compute", "logits", "draft", "total", "fits", "choice",
    "predicted_decode_tokens_per_s",
}  # fmt: skip
SYSTEM_KEYS = {
    "memory", "cpu", "extensions", "bandwidth_bytes_per_s", "disk", "ranking", "recommended",
}  # fmt: skip
GIB = 1 << 30


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all commands here share: the bandwidth is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    monkeypatch.setenv("INFER_OS_CACHE", str(cache))
    return runner(monkeypatch, capfdbinary)


def process(cache: Path, *arguments: object) -> Outcome:
    """Run a command in a process of its own."""
    environment = {**os.environ, "INFER_OS_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-m", "infer_os.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    return Outcome(result.returncode, result.stdout, result.stderr)


def test_a_plan_of_a_name_before_any_download(cache: Path) -> None:
    result = process(
        cache, "plan", "gpt-neox-20b", "--memory", "13GiB", "--context", "2048", "--json"
    )
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    assert plan.keys() >= PLAN_KEYS
    assert plan["fits"]
    assert plan["choice"] == {"type": "q4_0", "kv": "f16:1024,q8_0:2048", "load": "mmap"}
    assert plan["weights"] == pytest.approx(11.65e9, rel=1e-3)
    assert plan["memory"] == 13 * GIB >= plan["total"]
    parts = ("weights", "kv", "compute", "logits", "process", "draft")
    beside = plan["beside"]
    assert plan["total"] == sum(plan[part] for part in parts) + sum(beside.values())
    assert list(beside) == ["download, conversion"]
    assert [stage["tokens"] for stage in plan["stages"]] == [1024, 2048]
    assert plan["predicted_decode_tokens_per_s"] > 0
    assert {entry["type"] for entry in plan["types"]} >= {"q8_0", "q4_k_m", "q4_0"}
    assert (cache / "bandwidth.json").exists()


def test_a_plan_of_a_file_and_of_its_checkpoint(run: Cli, converted: Converter) -> None:
    path = converted(kind="q4_0")
    file = json.loads(run("plan", path, "--json", "--kv", "q8_0").out)
    assert file["weights"] == read_gguf_header(path).weight_bytes
    folder = json.loads(run("plan", PARALLEL, "--type", "q4_0", "--kv", "q8_0", "--json").out)
    same = ("weights", "kv", "compute", "logits", "choice")
    assert {key: file[key] for key in same} == {key: folder[key] for key in same}
    assert file["choice"]["kv"] == "q8_0"
    # the first call converts, and what that leaves is held
    assert file["beside"] == {}
    first = sum(folder["beside"].values())
    assert 0 < first <= folder["total"] - file["total"]


def test_a_plan_for_people(run: Cli) -> None:
    result = run("plan", "gpt-j-6B", "--memory", "8G")
    assert result.code == 0
    for words in ("KV cache", "compute buffers", "q4_k_m", "tokens/s", "load mmap", "fits"):
        assert words in result.out


def test_drafts_and_sequences_are_planned(run: Cli) -> None:
    plain = json.loads(run("plan", "gpt-j-6B", "--type", "q4_0", "--kv", "f16", "--json").out)
    both = json.loads(
        run("plan", "gpt-j-6B", "--type", "q4_0", "--kv", "f16", "--draft", "auto", "--parallel",
            "4", "--json").out
    )  # fmt: skip
    assert both["kv"] == 4 * plain["kv"]
    assert both["draft"] > 60_000_000 > plain["draft"] == 0
    # as many rows as a batch's step may have
    assert both["logits"] == plain["logits"] * 16 // 2


def test_what_does_not_fit_is_said(run: Cli) -> None:
    result = run("plan", "gpt-neox-20b", "--memory", "4G", "--json")
    assert result.code == 0
    assert json.loads(result.out)["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt-j-6B", "--memory", "lots"], "--memory lots: expected a size"),
        (["gpt-j-6B", "--memory", "-3G"], "--memory -3G"),
        (["gpt-j-6B", "--memory", "0"], "--memory 0"),
        (["gpt-j-6B", "--context", "3"], "--context 3"),
        (["gpt2-large", "--context", "2000"], "1024 learned positions"),
        (["gpt-j-6B", "--parallel", "0"], "--parallel 0"),
        (["gpt-j-6B", "--type", "q9"], "--type q9: gpt-j-6B can have f32"),
        (["gpt-j-6B", "--load", "ram"], "--load ram"),
        (["gpt-j-6B", "--kv", "q9"], "--kv q9"),
        (["gpt-j-6B", "--kv", "f16", "--kv-budget", "1G"], "give one of them"),
        (["gpt-j-6B", "--draft", "gpt9"], "gpt9: no such"),
        (["gpt-j-7B"], "did you mean gpt-j-6B"),
        (["pythia-16m"], "did you mean pythia-160m"),
        (["qwertyuiop"], "no such file or folder, and no name in the catalog"),
        (["./gone.gguf"], "gone.gguf: no such file"),
        ([str(PARALLEL / "tokens.npy")], "not a GGUF file"),
        ([str(PARALLEL.parent)], "no config.json"),
    ],
)
def test_bad_input(run: Cli, arguments: list[str], words: str) -> None:
    assert words in run("plan", *arguments).user_error


def test_a_name_without_any_near_one_suggests_nothing(run: Cli) -> None:
    assert "did you mean" not in run("plan", "qwertyuiop").user_error


def test_a_run_that_cannot_fit_shows_its_plan(run: Cli, converted: Converter) -> None:
    result = run("generate", converted(), "-p", "a", "-n", "1", "--memory", "60M")
    error, *table = result.err.splitlines()
    assert result.code == 2
    assert error.startswith("error: ")
    assert "does not fit" in error
    assert any(line.startswith("KV cache") for line in table)
    assert any("does not fit" in line for line in table)
    fits = run("generate", converted(), "-p", "a", "-n", "1", "--memory", "600M", "--json")
    assert fits.code == 0
    memory = json.loads(fits.out)["memory"]
    assert memory["weights_bytes"] > 0
    assert 0 < memory["model_pages_bytes"] < memory["rss_bytes"]
    assert 0 < memory["compute_bytes"] < memory["planned_bytes"] < 600 << 20


def test_auto_that_cannot_fit_shows_its_plan(run: Cli, converted: Converter) -> None:
    result = run("generate", converted(), "-p", "a", "-n", "1", "--memory", "60M", "--kv", "auto")
    error, *table = result.err.splitlines()
    assert result.code == 2
    assert "does not fit" in error
    assert any(line.startswith("KV cache") for line in table)


def test_a_budget_is_for_all_sequences(run: Cli) -> None:
    budget = 400 << 20
    result = run("plan", "gpt-j-6B", "--kv-budget", "400M", "--parallel", "4", "--json")
    plan = json.loads(result.out)
    assert 0 < plan["kv"] <= budget
    assert all(stage["bytes"] <= budget for stage in plan["stages"])
    result = run("plan", "gpt-j-6B", "--kv-budget", "5M", "--parallel", "4")
    assert "of each sequence" in result.user_error


@pytest.mark.parametrize("load", ["mmap", "fast"])
def test_the_plans_auto_is_the_engines(
    cache: Path, converted: Converter, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    """In every memory: the same schedule, or both say that nothing fits."""
    monkeypatch.setenv("INFER_OS_CACHE", str(cache))
    monkeypatch.setattr(budget, "mapped_file_bytes", lambda: None)
    header = read_gguf_header(converted())
    settings = EngineSettings(2048, load, 1, "auto")
    enough = make_answer(PlanRequest(str(header.path), settings, load)).plan
    specs = []
    for step in range(-2, 34):
        memory = enough.total - step * enough.kv // 32
        asked = replace(settings, memory=memory)
        planned = make_answer(PlanRequest(str(header.path), asked, load)).plan
        try:
            found, _notes = plan_file(header, asked)
        except MemoryShortage as error:
            assert error.plan is not None and not planned.fits
            assert error.plan.total == planned.total
            specs.append("")
        else:
            assert planned.fits
            assert (found.schedule, found.total) == (planned.schedule, planned.total)
            specs.append(found.schedule.spec)
    assert len(set(specs)) >= 4
    assert specs[0] == "f16" and specs[-1] == ""


def test_direct_with_prefetch_is_an_error(run: Cli, converted: Converter) -> None:
    result = run("generate", converted(), "-p", "a", "--load", "direct", "--prefetch")
    assert "--prefetch has no effect" in result.user_error


def test_the_system(cache: Path) -> None:
    result = process(cache, "system", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report.keys() >= SYSTEM_KEYS
    assert 0 < report["memory"]["usable"] <= report["memory"]["total"]
    assert report["cpu"]["usable"] >= 1
    assert report["bandwidth_bytes_per_s"] >= report["bandwidth_one_core_bytes_per_s"] > 0
    assert report["disk"]["free"] > 0
    assert "REPACK" in report["extensions"]["used"]
    ranking = report["ranking"]
    assert [entry["model"].rpartition("/")[2] for entry in ranking] == list(RANKED)
    for entry in ranking:
        assert entry.keys() >= {"model", "type", "bytes", "fits", "tokens_per_s"}
        assert entry["fits"] == (entry["bytes"] <= report["memory"]["usable"])
    fitting = [entry["model"] for entry in ranking if entry["fits"]]
    assert report["recommended"] in (fitting or [None])
    if advice := report["recommendation"]:
        assert advice["model"] == report["recommended"]
        if advice["reaches_floor"]:
            assert advice["bytes"] + advice["headroom"] <= report["memory"]["usable"]
            assert advice["tokens_per_s"] >= advice["floor_tokens_per_s"]


def test_the_system_for_people(run: Cli) -> None:
    text = run("system").out
    for words in (
        "memory",
        "swap",
        "control group",
        "processor",
        "llama.cpp uses",
        "disk",
        "distilgpt2",
    ):
        assert words in text


def ranked(*rows: tuple[str, float, float]) -> list[RankedModel]:
    """The ranking of a machine with this many GB, that reads this many GB per second, per model."""
    found = []
    for name, memory, bandwidth in rows:
        (one,) = (
            r for r in rank(Budget(int(memory * 1e9), bandwidth * 1e9)) if r.model.name == name
        )
        found.append(one)
    return found


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path))


def test_what_is_recommended_leaves_room(no_cache: None) -> None:
    """GPT-NeoX-20B fits 23.5 GB at q8_0 to the last byte: nobody would run that."""
    (neox,) = ranked(("gpt-neox-20b", 23.5, 300))
    assert neox.plan.weights.type == "q8_0"
    best = recommend([neox])
    assert best is not None and best.fast
    assert best.plan.weights.type == "q6_k"
    assert best.plan.total <= 23.5e9 - headroom(int(23.5e9))


def test_what_is_recommended_is_a_command(no_cache: None) -> None:
    """It says everything in which its plan differs from what ``run`` does by itself."""
    (gptj,) = ranked(("gpt-j-6B", 9, 300))
    best = recommend([gptj])
    assert best is not None
    assert run_command(best) == f"infer-os run --model gpt-j-6B --type {best.plan.weights.type}"
    stages = KvSchedule((KvStage("f16", "f16", 512), KvStage("q8_0", "q8_0", 2048)))
    other = replace(best, plan=replace(best.plan, schedule=stages, load="fast"))
    assert run_command(other).endswith(" --kv f16:512,q8_0:2048 --load fast")


def test_what_is_recommended_is_fast_enough(no_cache: None) -> None:
    neox, gptj = ranked(("gpt-neox-20b", 64, 20), ("gpt-j-6B", 64, 20))
    best = recommend([neox, gptj])
    assert best is not None and best.fast
    assert best.model.name == "gpt-j-6B"
    assert best.plan.tokens_per_s is not None and best.plan.tokens_per_s >= FLOOR
    # where nothing is, the fastest, and it is said so
    neox, gptj = ranked(("gpt-neox-20b", 64, 1), ("gpt-j-6B", 64, 1))
    best = recommend([neox, gptj])
    assert best is not None and not best.fast
    assert best.model.name == "gpt-j-6B"
    assert recommend(ranked(("gpt-neox-20b", 2, 1))) is None
    assert headroom(100 * 10**9) == 10 * 10**9 and headroom(4 * 10**9) == 10**9


def test_the_ranking_is_by_size() -> None:
    sizes = [find_shape(name).option("f16").n_bytes for name in RANKED]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_the_ranking_names_its_models_on_any_terminal(
    cache: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", str(cache))
    text = shown(columns, "system")
    table = text.split("\nmodel")[1].split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= columns
    names = {model.id if columns == 100 else model.name for model in CATALOG}
    rows = [row.split() for row in table[2:] if not row.startswith(" ")]
    assert len(rows) == len(RANKED)
    assert {row[0] for row in rows} <= names
    assert all(row[3] in ("B", "kB", "MB", "GB") for row in rows)
    # whether beside each other or below, every model has both
    whole = " ".join(text.split("\nmodel")[1].split("\n\n")[0].split())
    assert "tokens/s at most" in whole and "cache" in whole
    assert max(map(len, text.split("recommended:")[1].splitlines())) <= columns
    assert whole.count("f16") >= len(RANKED) - 1


@pytest.mark.parametrize("columns", [40, 80])
def test_the_types_of_a_plan_are_named_on_any_terminal(
    cache: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("INFER_OS_CACHE", str(cache))
    text = shown(columns, "plan", "gpt-j-6B")
    table = text.split("\ntype ")[1].split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= columns
    kinds = [option.type for option in find_shape("gpt-j-6B").options]
    rows = [row.split() for row in table[2:] if not row.startswith(" ")]
    assert [row[0] for row in rows] == kinds
    assert all(row[5] in ("yes", "no") for row in rows)
    rates = sum(
        float(word) > 0 for row in table[2:] for word in row.split()[-1:] if word[0].isdigit()
    )
    assert rates == len(kinds)
    assert max(map(len, text.splitlines())) <= columns


def test_an_evaluation_is_planned(run: Cli, converted: Converter, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sea " * 200)
    words = ["--text", text, "--window", "32", "--windows", "1", "--threads", "1"]
    result = run("eval", converted(), *words, "--reference", converted(kind="f32"), "--memory", "9")
    assert "evaluation" in result.err and "of reference" in result.err
    assert result.code == 2
    assert "--window" in result.err
    # a folder is refused before it is converted
    result = run("eval", PARALLEL, *words, "--types", "q8_0,f16", "--memory", "60M")
    assert result.code == 2 and "of reference" in result.err and "converting" not in result.err
    assert run("eval", converted(), *words, "--memory", "600M").code == 0


def test_a_conversation_counts_its_template(run: Cli, converted: Converter, tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "talks")
    config = folder / "tokenizer_config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps({**known, "chat_template": TEMPLATES["chatml"]}))
    made = tmp_path / "talks.gguf"
    convert(ConvertSettings(folder, made, "f16"))
    for path, style, counted in (
        (made, (), True), (made, ("--style", "template"), True),
        (made, ("--style", "dialogue"), False), (converted(), (), False),
    ):  # fmt: skip
        result = run("chat", path, "--memory", "1", *style, stdin=b"Hello\n")
        assert ("chat template" in result.err) == counted
