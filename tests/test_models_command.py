"""``infer-os models``: what it lists, what it shows, what it removes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from adapter_files import random_adapter
from helpers import PARALLEL, REFERENCES, copy_checkpoint
from hub_fixtures import Desk, environment, make_repository
from in_process import Cli, runner
from on_terminal import shown
from published_models import serve

from infer_os.commands.loading import load_engine
from infer_os.convert.errors import OutputError
from infer_os.convert.output_locks import locked
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import HubSource
from infer_os.models.catalog import CATALOG, find_model
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.plan import budget
from infer_os.runtime.settings import EngineSettings
from infer_os.store.planning import PlanRequest, make_answer
from infer_os.store.removal import cached_models, remove_model
from infer_os.store.wish import ModelWish

GPTJ = next(path for path in REFERENCES if path.name == "gptj")
SMALL = EngineSettings(context=64, threads=1)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A hub with distilgpt2 and someone/tiny, and an empty cache."""
    with environment(tmp_path, monkeypatch) as made:
        serve(made.server.repositories, tmp_path / "hub", "distilgpt2")
        made.server.repositories["someone/tiny"] = {
            "main": make_repository(tmp_path / "tiny", PARALLEL, "safetensors-sharded")
        }
        yield made
    assert made.server.errors == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


def fetch(*names: str | Path) -> None:
    for name in names:
        load_engine(str(name), SMALL)[0].close()


def disk_usage(folder: Path) -> int:
    files = (p for p in folder.rglob("*") if p.is_file())
    return sum(p.stat().st_size for p in files if p.name != "source.txt")


# ---- list


def test_the_list_has_the_catalog_and_the_cache(desk: Desk, run: Cli, checkpoint: Path) -> None:
    fetch("distilgpt2", "someone/tiny", checkpoint)
    for command in (["models", "--json"], ["models", "list", "--json"]):
        told = json.loads(run(*command).out)
        assert [entry["model"] for entry in told["models"]] == [model.id for model in CATALOG]
        cached = {entry["model"]: entry for entry in told["cache"]["models"]}
        assert set(cached) == {"distilbert/distilgpt2", "someone/tiny", str(checkpoint)}
        for entry in cached.values():
            (file,) = entry["files"]
            assert file["type"] == "q4_0"
            assert file["bytes"] == Path(file["path"]).stat().st_size
            assert entry["unfinished_bytes"] == 0
        assert told["cache"]["folder"] == str(desk.cache)
        assert told["cache"]["bytes"] == sum(p.stat().st_size for p in desk.cache.rglob("*.gguf"))
        marked = [entry["model"] for entry in told["models"] if entry["cached"]]
        assert marked == ["distilbert/distilgpt2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("polyglot 5.8B", {"EleutherAI/polyglot-ko-5.8b"}),
        ("StarCoder", {m.id for m in CATALOG if "starcoder" in m.id}),
        ("xglm", {m.id for m in CATALOG if m.architecture == "XGLMForCausalLM"}),
        ("GPT-BigCode", {m.id for m in CATALOG if m.architecture == "GPTBigCodeForCausalLM"}),
        ("rinna ppo", {"rinna/japanese-gpt-neox-3.6b-instruction-ppo"}),
        ("pygmalion", {m.id for m in CATALOG if m.style == "pygmalion"}),
    ],
)  # fmt: skip
def test_a_search(desk: Desk, run: Cli, text: str, expected: set[str]) -> None:
    fetch("distilgpt2")
    for command in (["models"], ["models", "list"]):
        told = json.loads(run(*command, "--search", text, "--json").out)
        assert {entry["model"] for entry in told["models"]} == expected
        assert told["cache"]["models"] == []
        assert told["cache"]["bytes"] > 0


def test_a_search_looks_into_the_cache(desk: Desk, run: Cli) -> None:
    fetch("someone/tiny", "distilgpt2")
    (found,) = json.loads(run("models", "--search", "gpt-2 distil", "--json").out)["models"]
    assert (found["model"], found["cached"]) == ("distilbert/distilgpt2", ["q4_0"])
    told = json.loads(run("models", "--search", "SOMEONE", "--json").out)
    assert told["models"] == []
    assert [entry["model"] for entry in told["cache"]["models"]] == ["someone/tiny"]
    assert "someone/tiny" in run("models", "--search", "someone").out


def test_a_search_without_a_find(desk: Desk, run: Cli) -> None:
    result = run("models", "--search", "polyglot-ko-5.8")
    assert result.code == 0
    result = run("models", "--search", "gpt-j-6C")
    assert (result.code, result.out) == (2, "")
    assert "no model of the catalog or of the cache" in result.err
    assert "did you mean gpt-j-6B" in result.err
    assert run("models", "--search", "x", "show", "gpt2").code == 2


def test_needs_are_those_of_a_plan(desk: Desk, run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "mapped_file_bytes", lambda: None)
    entries = {e["model"]: e for e in json.loads(run("models", "--json").out)["models"]}
    for name in ("EleutherAI/gpt-j-6B", "bigscience/bloom-7b1", "distilbert/distilgpt2"):
        for kind in ("q8_0", "q4_0"):
            request = PlanRequest(name, EngineSettings(kv="f16"), "mmap", kind)
            plan = make_answer(request, rates=False).plan
            found = entries[name]["types"][kind]
            assert (found["bytes"], found["memory"]) == (plan.weights.n_bytes, plan.total)
    j = entries["EleutherAI/gpt-j-6B"]
    assert j["parameters"] == 6_050_882_784
    assert (j["name"], j["types"]["q8_0"]["bytes"] > 6e9) == ("gpt-j-6B", True)


def test_what_fits_follows_the_memory(
    desk: Desk, run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        usable = 6_000_000_000

    monkeypatch.setattr(budget, "read_memory", lambda: Little)
    fits = {e["name"]: e["fits"] for e in json.loads(run("models", "--json").out)["models"]}
    assert fits["gpt-neox-20b"] is None
    assert fits["gpt-j-6B"] == "q5_k_m"
    assert fits["distilgpt2"] == "q8_0"
    shown = run("models").out
    assert "fits: the finest type for 6.00 GB" in shown


@pytest.mark.parametrize("columns", [40, 100])
@pytest.mark.parametrize("command", ["list", "show gpt2-medium", "show someone/tiny"])
def test_it_is_tidy_on_a_terminal(desk: Desk, columns: int, command: str) -> None:
    fetch("distilgpt2", "someone/tiny")
    text = shown(columns, "models", *command.split())
    # paths, commands and names stand for themselves, to be copied; all else keeps within it
    whole = ("/", "cache: ", "infer-os ", *(model.name for model in CATALOG))
    lines = [line for line in text.split("\n") if not line.startswith(whole)]
    assert [line for line in lines if len(line) > columns] == []
    if command == "list":
        # every model of the catalog with its numbers, on a line of its own where there is room
        if columns == 100:
            rows = [line for line in lines if re.search(r"  (no|q\w+|b?f\d+) .*\d [MB]$", line)]
            assert len(rows) == len(CATALOG)
        else:
            joined = " ".join(text.split())
            assert len(re.findall(r"fits (no|q\w+|b?f\d+), q4_0 needs", joined)) == len(CATALOG)
            assert len(re.findall(r", parameters [\d.]+ [MB]", joined)) == len(CATALOG)
        assert "20.6 B" in text
        assert ("EleutherAI/gpt-neox-20b" in text) == (columns == 100)
        assert "gpt-neox-20b" in text
    else:
        assert "architecture" in text


# ---- show


def test_show_tells_everything(desk: Desk, run: Cli) -> None:
    fetch("distilgpt2")
    told = json.loads(run("models", "show", "DistilGPT2", "--json").out)
    model = find_model("distilgpt2")
    assert model is not None
    assert (told["model"], told["aliases"]) == (model.id, ["distilgpt2"])
    assert (told["revision"], told["draft"], told["style"]) == ("main", None, "dialogue")
    assert told["geometry"]["layers"] == 6
    assert told["geometry"]["vocabulary"] == 50257
    assert told["parameters"] == 81_912_576
    assert {"q8_0", "q4_0", "f16"} <= set(told["types"])
    (file,) = told["cached"]
    resolved = desk.server.resolve(model.id, "main")
    assert resolved is not None
    assert (file["type"], file["commit"]) == ("q4_0", resolved[1])
    assert (file["architecture"], file["damage"]) == ("GPT2LMHeadModel", None)
    text = run("models", "show", "distilgpt2").out
    for part in ("hub id", "draft partner", "prompt style", file["path"], file["commit"][:12]):
        assert part in text
    assert (file["run"], file["context"]) == ("infer-os run distilgpt2 --type q4_0", 1024)
    assert f"{file['run']}\n" in text
    assert f"{file['bits_per_weight']:.2f} bits per weight" in text
    made = datetime.fromisoformat(file["converted"])
    assert abs(made.timestamp() - Path(file["path"]).stat().st_mtime) < 1
    assert f"converted {made:%Y-%m-%d %H:%M}" in text


def test_show_of_what_is_not_there_yet_says_how_to_get_it(desk: Desk, run: Cli) -> None:
    assert run("models", "show", "gpt-j-6B").out.endswith("\ninfer-os pull gpt-j-6B\n")


def test_show_of_what_is_in_no_catalog(desk: Desk, run: Cli) -> None:
    fetch("someone/tiny")
    told = json.loads(run("models", "show", "someone/tiny", "--json").out)
    assert [file["architecture"] for file in told["cached"]] == ["GPTNeoXForCausalLM"]
    text = run("models", "show", "someone/tiny").out
    header = read_gguf_header(Path(told["cached"][0]["path"]))
    assert told["cached"][0]["parameters"] == header.n_params
    assert re.search(rf"^context +{header.metadata['gptneox.context_length']} *$", text, re.M)
    assert re.search(r"^parameters +0.[0-9]+ M *$", text, re.M)
    assert re.search(r"^on the disk +[\d.]+ kB *$", text, re.M)
    assert "infer-os run someone/tiny --type q4_0\n" in text
    path = Path(told["cached"][0]["path"])
    path.write_bytes(path.read_bytes()[:-1])
    told = json.loads(run("models", "show", "someone/tiny", "--json").out)
    assert "truncated" in told["cached"][0]["damage"]
    assert "damaged" in run("models", "show", "someone/tiny").out


def test_show_of_an_unknown_name(desk: Desk, run: Cli) -> None:
    fetch("someone/tiny")
    result = run("models", "show", "gpt-j-6C")
    assert (result.code, result.out) == (2, "")
    assert "gpt-j-6C: neither in the catalog nor in the cache; did you mean gpt-j-6B" in result.err
    assert "did you mean someone/tiny?" in run("models", "show", "someone/tinny").err


# ---- inspect, of what is in the cache


def test_inspect_takes_names(
    desk: Desk, run: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("distilgpt2", "someone/tiny", checkpoint)
    desk.server.requests.clear()
    for name in ("distilgpt2", "distilbert/distilGPT2", "someone/tiny", checkpoint):
        told = json.loads(run("inspect", name, "--json").out)
        assert told["metadata"]["general.file_type"] == 2
    assert desk.server.requests == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt-j-6B"], "EleutherAI/gpt-j-6B: it is not in the cache; infer-os pull gpt-j-6B puts"),
        (["distilgpt2", "--type", "Q8_0"],
         "q8_0 of it is not in the cache (but --type q4_0 is); infer-os pull distilgpt2 --type q8"),
        (["distilgpt3"], "did you mean distilgpt2"),
        (["m.gguf"], "m.gguf: no such file or folder"),
    ],
)  # fmt: skip
def test_inspect_of_what_is_not_there(
    desk: Desk, run: Cli, arguments: list[str], says: str
) -> None:
    fetch("distilgpt2")
    desk.server.requests.clear()
    assert says in run("inspect", *arguments).user_error
    assert desk.server.requests == []


def test_inspect_of_a_folder_that_is_no_checkpoint(run: Cli, tmp_path: Path) -> None:
    """It does not send the user to pull, which cannot help."""
    assert run("inspect", tmp_path).user_error.endswith("not a checkpoint: it has no config.json\n")


# ---- pull


def test_pull_fetches_and_says_where(desk: Desk, run: Cli) -> None:
    first = run("pull", "distilgpt2", "--type", "q8_0")
    assert first.code == 0, first.err
    (path,) = desk.cache.rglob("*.gguf")
    assert first.out == f"{path}\n"
    assert first.err.endswith("kB; infer-os run distilgpt2 --type q8_0 runs it\n")
    desk.server.requests.clear()
    second = run("pull", "distilgpt2", "--json")
    assert json.loads(second.out) == {"path": str(path), "bytes": path.stat().st_size}
    assert "q8_0 from the cache; the hub was not asked" in second.err
    assert desk.server.requests == []


def test_pull_needs_no_memory_for_the_model(
    desk: Desk, run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infer_os.store import planning

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a plan was made")

    monkeypatch.setattr(planning, "make_answer", refuse)
    assert run("pull", "someone/tiny").code == 0


def test_pull_of_no_model(desk: Desk, run: Cli) -> None:
    assert "did you mean distilgpt2" in run("pull", "distilgpt3").user_error


# ---- rm


def test_rm_frees_everything(desk: Desk, run: Cli, checkpoint: Path) -> None:
    fetch("distilgpt2", "someone/tiny", checkpoint)
    for name in ("DISTILGPT2", "someone/tiny", checkpoint):
        before = disk_usage(desk.cache)
        result = run("models", "rm", name, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["freed_bytes"] == before - disk_usage(desk.cache) > 0
    assert [path for path in desk.cache.rglob("*") if path.is_file()] == []
    assert not (desk.cache / "models").exists()
    # the folder itself is the user's
    assert (checkpoint / "config.json").exists()


def test_rm_says_how_much(desk: Desk, run: Cli) -> None:
    fetch("distilgpt2")
    n_bytes = next(desk.cache.rglob("*.gguf")).stat().st_size
    result = run("models", "rm", "distilgpt2")
    assert result.err == f"distilbert/distilgpt2: removed, {n_bytes / 1e3:.1f} kB freed\n"


def test_rm_of_one_type(desk: Desk, run: Cli) -> None:
    fetch("distilgpt2")
    run("generate", "distilgpt2", "-p", "x", "-n", "1", "--type", "q8_0", "--threads", "1")
    assert (
        "q5_0 is not in the cache; there is q4_0, q8_0"
        in run("models", "rm", "distilgpt2", "--type", "q5_0").err
    )
    assert run("models", "rm", "distilgpt2", "--type", "Q8_0").code == 0
    assert [path.name for path in desk.cache.rglob("*.gguf")] == ["distilgpt2-q4_0.gguf"]


def test_rm_of_a_folder_that_is_gone(
    desk: Desk, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_checkpoint(PARALLEL, tmp_path / "gone")
    fetch(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    monkeypatch.chdir(tmp_path)
    assert run("models", "rm", "gone").code == 0
    assert list(desk.cache.iterdir()) == []


def test_rm_of_kept_and_interrupted_downloads(desk: Desk, run: Cli, tmp_path: Path) -> None:
    source = HubSource("someone/tiny")
    convert(ConvertSettings(source, tmp_path / "m.gguf", "q8_0", keep_source=True))
    (kept,) = cached_models()
    assert (kept.title, kept.files, kept.unfinished > 0) == ("someone/tiny", (), True)
    assert "unfinished" in run("models").out
    before = disk_usage(desk.cache)
    told = json.loads(run("models", "rm", "someone/tiny", "--json").out)
    assert told["freed_bytes"] == before
    assert list(desk.cache.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gpt2", "gpt2: not in the cache"),
        ("someone/tinny", "did you mean someone/tiny?"),
        ("no/such/thing", "no/such/thing: not in the cache"),
    ],
)
def test_rm_of_what_is_not_there(desk: Desk, run: Cli, name: str, part: str) -> None:
    fetch("someone/tiny")
    result = run("models", "rm", name)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert part in result.err
    assert len(list(desk.cache.rglob("*.gguf"))) == 1


def adapters_of(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in (cache / "adapters").rglob("*.*"))


def test_rm_takes_adapters_with_the_last_file_that_they_fit(
    desk: Desk, run: Cli, tmp_path: Path
) -> None:
    cache = desk.cache
    fetch("someone/tiny", PARALLEL)
    adapter = random_adapter(PARALLEL, tmp_path / "adapter")
    other = random_adapter(GPTJ, tmp_path / "other")
    for model, folder in (("someone/tiny", adapter), (GPTJ, other)):
        load_engine(ModelWish(str(model), adapters=(str(folder),)), SMALL)[0].close()
    made = adapters_of(cache)
    assert len(made) == 2
    (cache / "adapters/converted/.infer-os-0123456789abcdef.part").write_bytes(b"x")
    for base, name in (("someone/tiny", "a--b"), ("someone/else", "a--c")):
        place = cache / "adapters" / name / "main"
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        (place / "adapter_model.safetensors").write_bytes(b"x" * 5000)
    removed = json.loads(run("models", "rm", "someone/tiny", "--json").out)
    assert removed["freed_bytes"] > 5000
    assert adapters_of(cache) == [
        "adapters/a--c/main/adapter_config.json", "adapters/a--c/main/adapter_model.safetensors",
        *made,
    ]  # fmt: skip
    # what the other conversion of the same network used is still used by the folder's
    remove_model(str(PARALLEL))
    assert len(adapters_of(cache)) == 3
    remove_model(str(GPTJ))
    assert adapters_of(cache) == [
        "adapters/a--c/main/adapter_config.json", "adapters/a--c/main/adapter_model.safetensors",
    ]  # fmt: skip


def test_rm_refuses_what_is_in_use(desk: Desk, run: Cli) -> None:
    run("generate", "distilgpt2", "-p", "x", "-n", "1", "--type", "q8_0", "--threads", "1")
    engine, _ = load_engine("distilgpt2", SMALL)
    before = desk.cached()
    try:
        for more in ([], ["--type", "q8_0"]):
            result = run("models", "rm", "distilgpt2", *more)
            assert (result.code, result.out) == (2, "")
            assert "distilgpt2-q8_0.gguf: a process uses it" in result.err
        assert desk.cached() == before
    finally:
        engine.close()
    assert run("models", "rm", "distilgpt2").code == 0
    assert desk.cached() == []


@pytest.mark.parametrize("place", ["shelf", "downloads"])
def test_rm_refuses_what_is_being_made(desk: Desk, tmp_path: Path, place: str) -> None:
    fetch("someone/tiny")
    convert(ConvertSettings(HubSource("someone/tiny"), tmp_path / "m", keep_source=True))
    (model,) = cached_models()
    assert model.downloads is not None
    folder = {"shelf": model.shelf, "downloads": next(model.downloads.iterdir())}[place]
    before = disk_usage(desk.cache)
    with locked(folder / ".lock", "taken"), pytest.raises(OutputError, match="try again later"):
        remove_model("someone/tiny")
    assert disk_usage(desk.cache) == before
    remove_model("someone/tiny")
    assert list(desk.cache.iterdir()) == []


def test_json_stands_behind_the_command(run: Cli) -> None:
    result = run("models", "--json", "rm", "gpt2")
    assert "models rm --json" in result.err
    assert result.code == 2


def test_help(run: Cli) -> None:
    for command in ([], ["list"], ["show"], ["rm"]):
        result: Any = run("models", *command, "--help")
        assert result.code == 0
        assert "infer-os models" in result.out
