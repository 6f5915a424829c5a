"""Ready GGUF files of a repository, from a local hub through the real client."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from gguf_parts import STRING, GgufParts, Key
from helpers import REFERENCES
from hub_fixtures import Desk, client_environment, environment
from in_process import Cli, runner

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings

REPOSITORY = "someone/tiny-GGUF"
GPTJ = next(path for path in REFERENCES if path.name == "gptj")
LINE = ("--prompt", "ab", "-n", "4", "--threads", "1", "--seed", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model in three types."""
    folder = tmp_path_factory.mktemp("made")
    for kind in ("f16", "q8_0", "q4_0"):
        convert(ConvertSettings(GPTJ, folder / f"tiny-{kind.upper()}.gguf", kind))
    return folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with environment(tmp_path, monkeypatch) as opened:
        folder = tmp_path / "hub"
        folder.mkdir()
        opened.server.repositories[REPOSITORY] = {"main": folder}
        opened.server.faults.only = r"\.gguf$"
        yield opened
    assert opened.server.errors == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


def offer(desk: Desk, source: Path, name: str = "", folder: str = "") -> Path:
    """Put a file on the hub."""
    place = desk.server.repositories[REPOSITORY]["main"] / folder
    place.mkdir(exist_ok=True)
    path = place / (name or source.name)
    path.write_bytes(source.read_bytes())
    return path


def offer_all(desk: Desk, made: Path) -> None:
    for path in made.iterdir():
        offer(desk, path)


def ready_cache(desk: Desk) -> list[str]:
    """What the cache holds of ready files."""
    place = desk.cache / "models" / "ready"
    files = (p for p in place.rglob("*") if p.is_file() and p.name != ".lock")
    return sorted(path.relative_to(place).as_posix() for path in files)


def split(path: Path, target: Path, n_parts: int, **change: int) -> list[Path]:
    """Cut a file into parts, as gguf-split does."""
    whole = GgufParts.read(path)
    step = -(-len(whole.tensors) // n_parts)
    made = []
    for at in range(n_parts):
        keys = dict(whole.keys) if at == 0 else {}
        keys["split.no"] = Key(2, at)
        keys["split.count"] = Key(2, change.get("count", n_parts))
        keys["split.tensors.count"] = Key(5, change.get("tensors", len(whole.tensors)))
        part = GgufParts(keys, whole.tensors[at * step : (at + 1) * step])
        made.append(part.write(target.with_name(f"{target.name}-{at + 1:05}-of-{n_parts:05}.gguf")))
    return made


def test_by_quantization(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    here = run("run", "--model", made / "tiny-Q8_0.gguf", *LINE)
    assert here.code == 0, here.err
    first = run("run", "--model", f"{REPOSITORY}:q8_0", *LINE)
    assert first.code == 0, first.err
    assert first.out == here.out
    assert "downloading tiny-Q8_0.gguf" in first.err
    assert "written by another program" not in first.err
    place = desk.cache / "models" / "ready" / "someone--tiny-GGUF" / "main" / "tiny-Q8_0.gguf"
    assert place.read_bytes() == (made / "tiny-Q8_0.gguf").read_bytes()
    assert set(desk.server.files()) == {"tiny-Q8_0.gguf"}
    desk.server.requests.clear()
    again = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE)
    assert again.out == here.out
    assert "the hub was not asked" in again.err
    assert desk.server.requests == []


@pytest.mark.parametrize("name", ["tiny-Q4_0.gguf", "tiny-Q4_0", "sub/tiny-Q4_0.gguf"])
def test_by_file_name(desk: Desk, run: Cli, made: Path, name: str) -> None:
    offer_all(desk, made)
    offer(desk, made / "tiny-Q4_0.gguf", folder="sub")
    found = run("pull", f"{REPOSITORY}:{name}", "--json")
    assert found.code == 0, found.err
    path = Path(json.loads(found.out)["path"])
    assert path.read_bytes() == (made / "tiny-Q4_0.gguf").read_bytes()
    assert path.name == ("sub--tiny-Q4_0.gguf" if "/" in name else "tiny-Q4_0.gguf")
    assert run("pull", f"{REPOSITORY}:{name}", "--json").out == found.out


def test_parts_become_one_file(desk: Desk, run: Cli, made: Path, tmp_path: Path) -> None:
    for part in split(made / "tiny-Q8_0.gguf", tmp_path / "tiny-Q8_0", 3):
        offer(desk, part, folder="Q8_0")
    here = run("run", "--model", made / "tiny-Q8_0.gguf", *LINE)
    there = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE)
    assert there.code == 0, there.err
    assert there.out == here.out
    assert ready_cache(desk) == ["someone--tiny-GGUF/main/Q8_0--tiny-Q8_0.gguf"]
    # the reader of the gguf library sees the same model
    (path,) = (desk.cache / "models").rglob("*.gguf")
    got, wanted = GgufParts.read(path), GgufParts.read(made / "tiny-Q8_0.gguf")
    assert got.keys == wanted.keys
    assert [(t.name, t.shape, t.kind, t.data) for t in got.tensors] == [
        (t.name, t.shape, t.kind, t.data) for t in wanted.tensors
    ]


def test_a_part_is_missing(desk: Desk, run: Cli, made: Path, tmp_path: Path) -> None:
    first, _, third = split(made / "tiny-Q8_0.gguf", tmp_path / "tiny-Q8_0", 3)
    offer(desk, first)
    offer(desk, third)
    refused = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE)
    assert "2 of its 3 parts on the hub; part 2 is missing" in refused.user_error
    assert ready_cache(desk) == []


@pytest.mark.parametrize(
    ("change", "said"), [({"count": 4}, "split.count"), ({"tensors": 3}, "tensors; expected 3")]
)
def test_parts_that_do_not_fit(
    desk: Desk, run: Cli, made: Path, tmp_path: Path, change: dict[str, int], said: str
) -> None:
    for part in split(made / "tiny-Q8_0.gguf", tmp_path / "tiny-Q8_0", 2, **change):
        offer(desk, part)
    assert said in run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE).user_error
    assert ready_cache(desk) == []


def test_what_there_is_instead(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    absent = run("run", "--model", f"{REPOSITORY}:Q5_K_M", *LINE).user_error
    assert "no GGUF file Q5_K_M; there are F16 (" in absent
    assert "Q4_0 (" in absent
    assert "Q8_0 (" in absent
    offer(desk, made / "tiny-Q8_0.gguf", "other.q8_0.gguf")
    several = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE).user_error
    assert "other.q8_0.gguf, tiny-Q8_0.gguf" in several
    assert ready_cache(desk) == []


def test_a_repository_without_a_colon(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    hint = f"infer-os run {REPOSITORY}:tiny-F16.gguf"
    assert hint in run("run", "--model", REPOSITORY, *LINE).user_error
    assert hint in run("convert", REPOSITORY, "-o", desk.target).user_error
    ready = run("convert", f"{REPOSITORY}:Q8_0", "-o", desk.target).user_error
    assert "a ready GGUF file is used as it is" in ready
    typed = run("pull", f"{REPOSITORY}:Q8_0", "--type", "q4_0").user_error
    assert "a ready file keeps its type" in typed


def test_the_finest_that_fits(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    # F16 is larger and fits as well; quantized weights come first
    found = run("pull", f"{REPOSITORY}:auto", "--json")
    assert Path(json.loads(found.out)["path"]).name == "tiny-Q8_0.gguf"
    assert not any("F16" in r.file and "0-" not in r.range for r in desk.server.requests)


def test_the_plan_comes_first(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    plan = json.loads(run("plan", f"{REPOSITORY}:Q8_0", "--json").out)
    local = json.loads(run("plan", made / "tiny-Q8_0.gguf", "--json").out)
    for key in ("model", "weights", "kv", "compute", "logits", "choice"):
        assert plan[key] == local[key]
    assert ready_cache(desk) == []
    short = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE, "--memory", "20M")
    assert short.code != 0
    assert "nothing was downloaded" in short.err
    none = run("run", "--model", f"{REPOSITORY}:auto", *LINE, "--memory", "20M")
    assert "none of its files fits" in none.err
    assert ready_cache(desk) == []


def test_listed_shown_and_removed(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    for kind in ("Q8_0", "Q4_0"):
        assert run("pull", f"{REPOSITORY}:{kind}").code == 0
    listed = json.loads(run("models", "--json").out)
    assert REPOSITORY in json.dumps(listed["cache"])
    shown = json.loads(run("models", "show", REPOSITORY, "--json").out)
    assert [file["type"] for file in shown["cached"]] == ["Q4_0", "Q8_0"]
    assert shown["cached"][0]["run"] == f"infer-os run {REPOSITORY}:Q4_0"
    assert run("inspect", f"{REPOSITORY}:Q8_0").code == 0
    assert "infer-os pull" in run("inspect", f"{REPOSITORY}:F16").user_error
    assert run("models", "rm", f"{REPOSITORY}:q4_0").code == 0
    assert ready_cache(desk) == ["someone--tiny-GGUF/main/tiny-Q8_0.gguf"]
    assert run("models", "rm", REPOSITORY).code == 0
    assert ready_cache(desk) == []


def test_a_wrong_hash(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    desk.server.faults.corrupt = 2  # the header is read first, and has no hash
    assert run("pull", f"{REPOSITORY}:Q8_0").code == 0
    run("models", "rm", REPOSITORY)
    desk.server.faults.corrupt = 9
    wrong = run("pull", f"{REPOSITORY}:Q8_0")
    assert "came twice with the wrong hash" in wrong.err
    assert ready_cache(desk) == []


def test_broken_connections(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    desk.server.faults.cut_after, desk.server.faults.cuts = 30_000, 3
    found = run("pull", f"{REPOSITORY}:Q8_0", "--json")
    assert found.code == 0, found.err
    path = Path(json.loads(found.out)["path"])
    assert path.read_bytes() == (made / "tiny-Q8_0.gguf").read_bytes()


def test_goes_on_after_a_kill(desk: Desk, run: Cli, made: Path, tmp_path: Path) -> None:
    offer_all(desk, made)
    desk.server.faults.delay = 0.02
    process = subprocess.Popen(
        [sys.executable, "-m", "infer_os.entry", "pull", f"{REPOSITORY}:F16"],
        env=client_environment(desk, tmp_path), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    part = desk.cache / "models/ready/someone--tiny-GGUF/main/tiny-F16.gguf.incomplete"
    limit = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 40_000):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_there = part.stat().st_size
    desk.server.faults.delay = 0.0
    desk.server.requests.clear()
    found = run("pull", f"{REPOSITORY}:F16", "--json")
    assert found.code == 0, found.err
    path = Path(json.loads(found.out)["path"])
    assert path.read_bytes() == (made / "tiny-F16.gguf").read_bytes()
    begins = [int(r.partition("=")[2].partition("-")[0]) for r in desk.server.ranges(path.name)]
    assert max(begins) == n_there
    assert os.listdir(part.parent) == [path.name]


def absurd(path: Path) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 5)


def endless_key(path: Path) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 40) + bytes(4000)


def no_gguf(path: Path) -> bytes:
    return b"PK\x03\x04" + bytes(5000)


def empty(path: Path) -> bytes:
    return b"GGUF"


def cut(path: Path) -> bytes:
    return path.read_bytes()[:-1000]


def adapter(path: Path) -> bytes:
    parts = GgufParts.read(path)
    parts.keys["general.type"] = Key(STRING, "adapter")
    return parts.write(path).read_bytes()


def zero_heads(path: Path) -> bytes:
    parts = GgufParts.read(path)
    parts.keys["phi2.attention.head_count"].value = 0
    return parts.write(path).read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (absurd, "tensors; at most"),
        (endless_key, "a metadata key of"),
        (no_gguf, "not a GGUF file"),
        (empty, "truncated or damaged"),
        (cut, "truncated: tensor"),
        (adapter, "holds no model, but is of the type 'adapter'"),
        (zero_heads, "head_count"),
    ],
)
def test_hostile_files(
    desk: Desk, run: Cli, made: Path, tmp_path: Path, damage: object, said: str
) -> None:
    copy = tmp_path / "tiny-Q8_0.gguf"
    copy.write_bytes((made / "tiny-Q8_0.gguf").read_bytes())
    assert callable(damage)
    copy.write_bytes(damage(copy))
    offer(desk, copy)
    refused = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE).user_error
    assert said in refused
    assert f"{REPOSITORY}:tiny-Q8_0.gguf" in refused
    # only its first bytes were asked for
    assert all(r.range.startswith("bytes=0-") for r in desk.server.requests if r.file)
    assert ready_cache(desk) == []


def test_files_that_lead_elsewhere_are_not_seen(desk: Desk, run: Cli, made: Path) -> None:
    offer_all(desk, made)
    entry = {"size": 10, "blobId": "0" * 40}
    names = ("../../up-Q8_0.gguf", "/etc/up-Q8_0.gguf", ".hidden-Q8_0.gguf", "a//b-Q8_0.gguf")
    answer = {
        "id": REPOSITORY, "sha": "0" * 40,
        "siblings": [{"rfilename": name, **entry} for name in names],
    }  # fmt: skip
    desk.server.faults.listing = json.dumps(answer).encode()
    refused = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE).user_error
    assert "it has no GGUF file Q8_0; no GGUF files there" in refused


def test_another_graph_is_named(desk: Desk, run: Cli, made: Path, tmp_path: Path) -> None:
    parts = GgufParts.read(made / "tiny-Q8_0.gguf")
    del parts.keys["inferos.version"]
    offer(desk, parts.write(tmp_path / "foreign-Q8_0.gguf"))
    found = run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE)
    assert found.code == 0, found.err
    assert "foreign-Q8_0.gguf: written by another program: its tokenizer (gpt2" in found.err
    llama = write_llama(tmp_path / "llama-F32.gguf")
    offer(desk, llama)
    found = run("pull", f"{REPOSITORY}:F32")
    assert found.code == 0, found.err
    assert "its graph llama and its tokenizer (llama, split none) are not ones" in found.err


def write_llama(path: Path) -> Path:
    """A header of a Llama with one tensor."""
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_head_count(2)
    writer.add_tensor("token_embd.weight", np.zeros((16, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_offline(desk: Desk, run: Cli, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_all(desk, made)
    assert run("pull", f"{REPOSITORY}:Q8_0").code == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("run", "--model", f"{REPOSITORY}:Q8_0", *LINE).code == 0
    assert "HF_HUB_OFFLINE is set" in run("run", "--model", f"{REPOSITORY}:F16", *LINE).user_error


def test_a_revision(desk: Desk, run: Cli, made: Path, tmp_path: Path) -> None:
    offer(desk, made / "tiny-Q8_0.gguf")
    older = tmp_path / "older"
    older.mkdir()
    (older / "old-Q8_0.gguf").write_bytes((made / "tiny-Q8_0.gguf").read_bytes())
    desk.server.repositories[REPOSITORY]["v1"] = older
    found = run("pull", f"{REPOSITORY}@v1:Q8_0", "--json")
    assert json.loads(found.out)["path"].endswith("/someone--tiny-GGUF/v1/old-Q8_0.gguf")
    assert "no revision" in run("pull", f"{REPOSITORY}@v2:Q8_0").user_error
