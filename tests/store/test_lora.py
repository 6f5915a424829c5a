"""``--lora`` from a command line: found, fetched, cached under a name that knows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import TESTS, edit_json
from hub_fixtures import Desk, environment
from in_process import Cli, runner

from infer_os import load
from infer_os.commands.loading import join_cluster, join_scoring_cluster
from infer_os.runtime.batch import ray_backend
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.scoring import ray_scoring
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings
from infer_os.store.wish import ModelWish

BASE = TESTS / "reference/gptj"
ADAPTER = TESTS / "reference/adapters/gptj"
LINE = ("--prompt", "ab", "-n", "8", "--threads", "1", "--temperature", "0")
HUB = "someone/tiny-lora"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with environment(tmp_path, monkeypatch) as opened:
        monkeypatch.chdir(opened.out)
        opened.server.repositories[HUB] = {"main": ADAPTER}
        opened.server.repositories["someone/tiny"] = {"main": BASE}
        yield opened
    assert opened.server.errors == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


def conversions(desk: Desk) -> list[str]:
    return sorted(path.name for path in (desk.cache / "models").rglob("*.gguf"))


def test_a_folder(desk: Desk, run: Cli) -> None:
    plain = run("run", "--model", BASE, "--type", "f32", *LINE)
    tuned = run("run", "--model", BASE, "--type", "f32", "--lora", ADAPTER, *LINE)
    assert tuned.code == 0, tuned.err
    assert tuned.out != plain.out
    made = conversions(desk)
    assert len(made) == 2
    assert any(name.startswith("gptj-f32+lora-") for name in made)
    again = run("generate", BASE, "--type", "f32", "--lora", f"{ADAPTER}:1", *LINE)
    assert "from the cache" in again.err
    assert conversions(desk) == made
    # without the option, the plain one is taken
    assert run("run", "--model", BASE, "--type", "f32", *LINE).out == plain.out
    half = run("run", "--model", BASE, "--type", "f32", "--lora", f"{ADAPTER}:0.5", *LINE)
    assert half.code == 0, half.err
    assert len(conversions(desk)) == 3


def test_a_changed_adapter_is_another_one(desk: Desk, run: Cli, tmp_path: Path) -> None:
    adapter = shutil.copytree(ADAPTER, tmp_path / "adapter")
    line = ("pull", BASE, "--type", "f32", "--lora", adapter)
    assert run(*line).code == 0
    edit_json(adapter / "adapter_config.json", lambda config: config.update(lora_alpha=16))
    assert run(*line).code == 0
    assert len(conversions(desk)) == 2


def test_from_the_hub(desk: Desk, run: Cli) -> None:
    line = ("pull", "someone/tiny", "--type", "f32", "--lora", HUB, "--json")
    found = run(*line)
    assert found.code == 0, found.err
    place = desk.cache / "adapters/someone--tiny-lora/main"
    names = sorted(path.name for path in place.iterdir() if path.name != ".lock")
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    desk.server.requests.clear()
    assert run(*line).out == found.out
    assert desk.server.requests == []
    direct = run(
        "convert", "someone/tiny", "--type", "f32", "--lora", f"{HUB}@main:1", "-o", desk.target
    )
    assert direct.code == 0, direct.err
    assert json.loads(found.out)["bytes"] == desk.target.stat().st_size


def test_what_converts_takes_it(desk: Desk, run: Cli, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"id": 1, "prompt": "ab"}\n')
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"id": 1, "text": "ab"}\n')
    more = ("--lora", ADAPTER, "--threads", "1")
    for command, file, out in (("batch", records, "a.jsonl"), ("score", texts, "s.jsonl")):
        done = run(command, BASE, "-i", file, "-o", tmp_path / out, *more)
        assert done.code == 0, done.err
    (name,) = conversions(desk)
    assert name.startswith("gptj-q4_0+lora-")
    with load(BASE, loras=[str(ADAPTER)]) as model:
        assert model.path.name == name
    shown = json.loads(run("models", "show", BASE, "--json").out)["cached"]
    assert [file["run"] for file in shown] == [f"infer-os run {BASE} --type q4_0 --lora {ADAPTER}"]


def test_what_cannot_be(desk: Desk, run: Cli, tmp_path: Path) -> None:
    assert run("convert", BASE, "-o", desk.target, "--type", "f32").code == 0
    gguf = run("run", "--model", desk.target, "--lora", ADAPTER, *LINE).user_error
    assert "a GGUF file, whose weights are already quantized; name the checkpoint" in gguf
    ready = run("pull", "someone/x-GGUF:Q8_0", "--lora", ADAPTER).user_error
    assert "name the checkpoint" in ready
    for text, said in (
        ("", "--lora is empty"),
        ("nowhere", "no such folder, and not a hub id"),
        (f"{ADAPTER}:many", "the scale 'many' is not a number"),
        (f"{ADAPTER}:nan", "the scale 'nan'"),
        (f"{ADAPTER}:0", "the scale '0'"),
        (str(tmp_path), "not a LoRA adapter"),
        ("someone/tiny", "not a LoRA adapter"),
        ("someone/nobody", "no such model"),
    ):
        assert said in run("pull", BASE, "--lora", text).user_error, text
    assert conversions(desk) == []


def test_a_plan(desk: Desk, run: Cli) -> None:
    """No size changes, but with an adapter the model is another one that is still to be made."""

    def total(*words: object) -> int:
        done = run("plan", BASE, "--type", "f32", "--json", *words)
        assert done.code == 0, done.err
        return int(json.loads(done.out)["total"])

    assert run("pull", BASE, "--type", "f32").code == 0
    plain = total()
    assert total("--lora", ADAPTER) > plain
    assert run("pull", BASE, "--type", "f32", "--lora", ADAPTER).code == 0
    assert total("--lora", ADAPTER) == plain < total("--lora", f"{ADAPTER}:0.5")
    (file,) = (p for p in (desk.cache / "models").rglob("gptj-f32.gguf"))
    assert "whose weights are already" in run("plan", file, "--lora", ADAPTER).user_error
    assert "--lora nowhere: no such folder" in run("plan", BASE, "--lora", "nowhere").user_error


def test_vectors(desk: Desk, run: Cli) -> None:
    def vector(*words: object) -> list[float]:
        done = run("embed", BASE, "--threads", 1, *words, stdin=b'{"text": "the quick"}\n')
        assert done.code == 0, done.err
        found: list[float] = json.loads(done.out)["embedding"]
        return found

    plain, tuned = vector(), vector("--lora", ADAPTER)
    assert max(abs(a - b) for a, b in zip(plain, tuned, strict=True)) > 0.01
    assert len(conversions(desk)) == 2


def test_from_the_hub_beside_the_weights(desk: Desk, run: Cli) -> None:
    words = ["generate", BASE, "--type", "f32", *LINE]
    local = run(*words, "--adapter", ADAPTER)
    assert local.code == 0, local.err
    fetched = run(*words, "--adapter", HUB, "--json")
    assert fetched.code == 0, fetched.err
    assert json.loads(fetched.out)["adapter"] == "tiny-lora"
    assert run(*words, "--adapter", f"x={HUB}:1").out == local.out != run(*words).out
    # what was fetched and written is used without the hub
    desk.server.repositories.clear()
    assert run(*words, "--adapter", HUB).out == local.out
    assert len(conversions(desk)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [("gptj", "gptj"), ("gptj:x", "the scale 'x'"), ("config.json", "not a LoRA adapter"),
     ("no-such", "no such folder")],
)  # fmt: skip
def test_a_plan_with_an_adapter_that_does_not_fit(
    desk: Desk, run: Cli, tmp_path: Path, words: str, said: str
) -> None:
    """Where it can be seen without a download, it is seen."""
    other = TESTS / "reference/bloom"
    shutil.copytree(ADAPTER, "gptj")
    Path("config.json").write_text("{}")
    assert said in run("plan", other, "--lora", words).user_error
    assert run("plan", BASE, "--lora", "gptj:0.5").code == 0
    assert run("plan", other, "--lora", HUB).code == 0
    run("generate", "someone/tiny", "--lora", HUB, *LINE)
    assert HUB in run("plan", other, "--lora", HUB).user_error


def test_nodes_get_what_is_the_same_in_any_folder(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "adapter", "a=b"):
        Path(name).mkdir()
    Path("draft.gguf").touch()
    here = Path.cwd()
    opened: list[Any] = []
    monkeypatch.setattr(ray_backend, "RayBatch", lambda *given: opened.append(given[1].args))
    monkeypatch.setattr(ray_scoring, "RayScores", lambda *given: opened.append(given[1].args))
    wish = ModelWish(
        "model", loras=("adapter", "adapter:0.5", "a/b:2"), adapters=("x=adapter:0.5", "a=b", HUB)
    )
    settings = EngineSettings(draft="draft.gguf")
    join_cluster("auto", wish, settings, BatchSettings(), (SamplingSettings(), StopSettings()))
    join_scoring_cluster("auto", wish, settings, ScoringSettings())
    for found, with_draft, _ in opened:
        assert found.text == str(here / "model")
        assert found.loras == (f"{here}/adapter", f"{here}/adapter:0.5", "a/b:2")
        assert found.adapters == (f"x={here}/adapter:0.5", f"{here}/a=b", HUB)
        assert with_draft.draft == str(here / "draft.gguf")
    assert len(opened) == 2
