"""Conversion from the hub, with the real client: what is taken, what is left, what is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PARALLEL, TESTS, edit_json, read_tensors, write_shards
from hub_fixtures import (
    CONTAINERS,
    REPOSITORY,
    STRANGERS,
    Desk,
    client_environment,
    environment,
    make_repository,
    weights,
    write_index,
)
from hub_server import commit_of
from torch_writer import write_torch

from infer_os.convert import hub as client
from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.errors import (
    ConvertError,
    DownloadError,
    FileFormatError,
    OutputError,
    PlanError,
    SourceError,
    UnsupportedError,
)
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import HubSource
from infer_os.models.network import ConfigError
from infer_os.native.gguf_file import read_gguf_header

GPTJ = TESTS / "reference" / "gptj"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with environment(tmp_path, monkeypatch) as made:
        yield made
    assert made.server.errors == []


@pytest.fixture
def sharded(desk: Desk, tmp_path: Path) -> Desk:
    """A repository of four safetensors shards."""
    folder = make_repository(tmp_path / "repo", PARALLEL, "safetensors-sharded")
    desk.server.repositories[REPOSITORY] = {"main": folder}
    return desk


def local(target: Path, reference: Path = PARALLEL, kind: str = "q8_0") -> bytes:
    """The weights of a conversion from the folder itself."""
    convert(ConvertSettings(reference, target, kind))
    return weights(target)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("reference", [PARALLEL, GPTJ], ids=lambda path: path.name)
def test_every_container_gives_the_same_weights(
    desk: Desk, tmp_path: Path, container: str, reference: Path
) -> None:
    folder = make_repository(tmp_path / "repo", reference, container)
    desk.server.repositories[REPOSITORY] = {"main": folder}
    desk.watch_shards()
    report = desk.convert()
    assert desk.made() == ["m.gguf"]
    assert weights(desk.target) == local(tmp_path / "local.gguf", reference)
    assert report.n_bytes == desk.target.stat().st_size
    assert desk.most_shards == [1]
    assert desk.cached() == []
    asked = set(desk.server.files())
    assert not asked & set(STRANGERS)
    kinds = {name.rpartition(".")[2] for name in asked}
    assert kinds == {"json", "bin" if container.startswith("bin") else "safetensors"}


@pytest.mark.parametrize("container", ["safetensors", "bin-sharded"])
def test_the_same_bytes_from_any_container_and_threads(
    desk: Desk, tmp_path: Path, container: str
) -> None:
    # the commit of the test's server depends on the name alone
    outputs = []
    for number, kind in enumerate((container, "safetensors-sharded")):
        folder = make_repository(tmp_path / f"repo{number}", PARALLEL, kind)
        desk.server.repositories[REPOSITORY] = {"main": folder}
        desk.convert(kind="q4_0", threads=1 + number, output=desk.out / f"{number}.gguf")
        outputs.append((desk.out / f"{number}.gguf").read_bytes())
    assert outputs[0] == outputs[1]


def test_the_source_is_recorded(sharded: Desk) -> None:
    report = sharded.convert()
    metadata = read_gguf_header(sharded.target).metadata
    assert metadata["inferos.source.repository"] == REPOSITORY
    assert metadata["inferos.source.revision"] == sharded.commit()
    assert metadata["inferos.source.architecture"] == "GPTNeoXForCausalLM" == report.architecture
    assert metadata["general.source.huggingface.repository"] == REPOSITORY
    assert metadata["general.source.url"] == f"https://huggingface.co/{REPOSITORY}"
    assert metadata["general.name"] == "tiny"


def test_gpt_j_comes_from_its_float16_branch(desk: Desk, tmp_path: Path) -> None:
    wrong = make_repository(tmp_path / "main", PARALLEL, "safetensors")
    right = make_repository(tmp_path / "float16", GPTJ, "bin")
    desk.server.repositories["EleutherAI/gpt-j-6B"] = {"main": wrong, "float16": right}
    desk.convert("gpt-j-6b")
    metadata = read_gguf_header(desk.target).metadata
    assert metadata["inferos.source.revision"] == commit_of("EleutherAI/gpt-j-6B", "float16")
    assert weights(desk.target) == local(tmp_path / "local.gguf", GPTJ)
    desk.convert("EleutherAI/gpt-j-6B", revision="main", force=True)
    assert read_gguf_header(desk.target).architecture == "gptneox"


def test_the_output_is_named_after_the_repository(
    sharded: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sharded.out)
    assert sharded.convert(output=None).output == Path("tiny-q8_0.gguf")
    assert sharded.made() == ["tiny-q8_0.gguf"]


@pytest.mark.parametrize("container", ["safetensors-sharded", "bin-sharded"])
def test_progress_counts_download_and_conversion(
    desk: Desk, tmp_path: Path, container: str
) -> None:
    folder = make_repository(tmp_path / "repo", PARALLEL, container)
    # only a guess, and a wrong one
    edit_json(folder / "config.json", lambda config: {**config, "torch_dtype": "float32"})
    desk.server.repositories[REPOSITORY] = {"main": folder}
    plain: list[tuple[int, int]] = []
    settings = ConvertSettings(PARALLEL, tmp_path / "local.gguf")
    convert(settings, lambda done, total: plain.append((done, total)))
    calls: list[tuple[int, int]] = []
    desk.progress = lambda done, total: calls.append((done, total))
    desk.convert()
    shards = [*folder.glob("model-*.safetensors"), *folder.glob("pytorch_model-*.bin")]
    total = plain[-1][1] + sum(path.stat().st_size for path in shards)
    done = [n for n, _ in calls]
    assert done == sorted(done)
    assert calls[-1] == (total, total)
    assert container != "safetensors-sharded" or {of for _, of in calls} == {total}


def test_an_existing_output_is_refused_before_any_request(sharded: Desk) -> None:
    sharded.target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="already exists; --force replaces it"):
        sharded.convert()
    assert sharded.server.requests == []
    assert sharded.target.read_bytes() == b"precious"


# ---- what is wrong is said before anything large is downloaded


def test_a_gap_is_found_in_the_remote_headers(sharded: Desk) -> None:
    folder = sharded.server.repositories[REPOSITORY]["main"]
    (folder / "model.fp16.safetensors").unlink()
    tensors = read_tensors(folder)
    del tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"]
    tensors["stranger"] = tensors["embed_out.weight"]
    write_shards(folder, [dict(list(tensors.items())[i::3]) for i in range(3)])
    with pytest.raises(PlanError, match=r"layers\.1\.mlp\.dense_4h_to_h\.bias: missing.*stranger"):
        sharded.convert()
    assert sharded.shard_downloads() == []
    assert (sharded.cached(), sharded.made()) == ([], [])


def test_a_gap_is_found_in_the_index_of_bin_files(desk: Desk, tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", PARALLEL, "bin-sharded")
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())["weight_map"]
    del index["embed_out.weight"]
    write_index(folder, index)
    desk.server.repositories[REPOSITORY] = {"main": folder}
    with pytest.raises(PlanError, match=r"embed_out\.weight: missing"):
        desk.convert()
    assert desk.shard_downloads() == []
    assert (desk.cached(), desk.made()) == ([], [])


@pytest.mark.parametrize("container", ["bin", "bin-sharded"])
def test_a_bin_file_that_is_not_as_the_config_says(
    desk: Desk, tmp_path: Path, container: str
) -> None:
    folder = make_repository(tmp_path / "repo", PARALLEL, container)
    first = sorted(folder.glob("pytorch_model*.bin"))[0]
    tensors = read_tensors(PARALLEL)
    names = sorted(tensors)[:: 4 if container == "bin-sharded" else 1]
    wrong = {name: tensors[name] for name in names}
    wrong[names[0]] = wrong[names[0]][:-1]
    write_torch(first, wrong)
    desk.server.repositories[REPOSITORY] = {"main": folder}
    with pytest.raises(PlanError, match=rf"{names[0]} .*has shape"):
        desk.convert()
    assert (desk.cached(), desk.made()) == ([], [])


def test_an_architecture_that_is_not_supported_costs_one_file(sharded: Desk) -> None:
    folder = sharded.server.repositories[REPOSITORY]["main"]
    edit_json(folder / "config.json", lambda c: {**c, "architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ConfigError, match="unsupported architecture"):
        sharded.convert()
    assert sharded.server.files() == ["config.json"]
    assert sharded.cached() == []


def test_shards_that_the_hub_does_not_have(sharded: Desk) -> None:
    folder = sharded.server.repositories[REPOSITORY]["main"]
    (folder / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(SourceError, match=r"3 of 4 shards; missing: model-00003"):
        sharded.convert()


def test_a_remote_header_is_bounded(sharded: Desk) -> None:
    folder = sharded.server.repositories[REPOSITORY]["main"]
    path = folder / "model-00002-of-00004.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(FileFormatError, match=r"model-00002.* claims a header of"):
        sharded.convert()
    assert sharded.cached() == []


def test_a_header_longer_than_the_first_request(
    sharded: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infer_os.convert import hub_checkpoint

    monkeypatch.setattr(hub_checkpoint, "_FIRST_BYTES", 64)
    sharded.convert()
    assert weights(sharded.target) == local(tmp_path / "local.gguf")


@pytest.mark.parametrize("name", ["config.json", "model"])
def test_a_repository_without(sharded: Desk, name: str) -> None:
    folder = sharded.server.repositories[REPOSITORY]["main"]
    for path in [*folder.glob(f"{name}*"), *(folder.glob("*.bin") if name == "model" else ())]:
        path.unlink()
    with pytest.raises(SourceError, match="no config.json" if name != "model" else "no weights"):
        sharded.convert()


def test_a_disk_that_is_too_small_for_output_and_shard(
    sharded: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    real = os.statvfs
    folder = sharded.server.repositories[REPOSITORY]["main"]
    largest = max(path.stat().st_size for path in folder.glob("model-*"))
    needed = sharded.convert(dry_run=True).n_bytes + largest

    def with_room(n_bytes: int) -> None:
        def statvfs(path: Any) -> Any:
            values = list(real(path))
            values[1], values[4] = 1, n_bytes  # f_frsize, f_bavail
            return os.statvfs_result(values)

        monkeypatch.setattr(os, "statvfs", statvfs)

    with_room(needed - 1)
    with pytest.raises(OutputError, match="the file and the download that it is made from"):
        sharded.convert()
    assert sharded.shard_downloads() == []
    assert (sharded.cached(), sharded.made()) == ([], [])
    with_room(needed)
    sharded.convert()


# ---- keeping, planning, verifying


def test_a_dry_run_downloads_no_weights(sharded: Desk) -> None:
    planned = sharded.convert(dry_run=True)
    assert sharded.shard_downloads() == []
    assert (sharded.cached(), sharded.made()) == ([], [])
    done = sharded.convert()
    rows = [[(r.role, r.type, r.n_bytes) for r in report.classes] for report in (planned, done)]
    assert rows[0] == rows[1]
    assert not planned.written


def test_a_kept_source_is_a_checkpoint_folder(sharded: Desk, tmp_path: Path) -> None:
    sharded.convert(keep_source=True)
    first = sharded.target.read_bytes()
    (folder,) = sharded.cache.glob(f"checkpoints/*/{sharded.commit()}")
    assert len(list(folder.glob("*.safetensors"))) == 4
    assert local(tmp_path / "local.gguf", folder) == weights(sharded.target)
    # it serves the next conversion, which leaves it there
    sharded.server.requests.clear()
    sharded.convert(force=True)
    assert {request.file for request in sharded.server.requests} == {""}
    assert len(list(folder.glob("*.safetensors"))) == 4
    assert sharded.target.read_bytes() == first


def test_a_kept_source_is_calibrated_with(sharded: Desk) -> None:
    settings = ConvertSettings(
        HubSource(REPOSITORY), sharded.target, "q4_0", threads=1, keep_source=True
    )
    text = TESTS / "reference" / "imatrix" / "text.txt"
    report = convert_calibrated(settings, CalibrationSettings(text), lambda name: None)
    assert report.calibration is not None
    assert sharded.made() == [sharded.target.name]
    assert len(sharded.shard_downloads()) == 4


@pytest.mark.parametrize("kept", [False, True])
def test_offline(sharded: Desk, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    from huggingface_hub import constants

    sharded.convert(keep_source=kept)
    first = sharded.target.read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sharded.server.requests.clear()
    if kept:
        sharded.convert(force=True)
        assert sharded.target.read_bytes() == first
    else:
        wanted = r"HF_HUB_OFFLINE is set, and neither .* holds"
        with pytest.raises(SourceError, match=wanted) as bad:
            sharded.convert(force=True)
        assert "\n" not in str(bad.value)
    assert sharded.server.requests == []


@pytest.mark.parametrize("offline", [False, True])
def test_what_the_hubs_own_cache_holds_is_used(
    sharded: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    from huggingface_hub import constants, hf_hub_download

    folder = sharded.server.repositories[REPOSITORY]["main"]
    names = [path.name for path in [*folder.glob("*.json"), *folder.glob("model-*")]]
    cached = [Path(hf_hub_download(REPOSITORY, name)) for name in names]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    sharded.server.requests.clear()
    sharded.convert()
    assert {request.file for request in sharded.server.requests} <= {""}
    assert weights(sharded.target) == local(tmp_path / "local.gguf")
    assert read_gguf_header(sharded.target).metadata["inferos.source.revision"] == sharded.commit()
    assert all(path.is_file() for path in cached)
    assert sharded.cached() == []


def test_verify(sharded: Desk) -> None:
    report = sharded.convert(verify=True)
    assert report.verified
    tensors = read_gguf_header(sharded.target).tensors
    (note,) = [note for note in report.notes if note.startswith("verify: ")]
    n = len(tensors)  # each so small that its first block is its last
    assert note.startswith(f"verify: {n} tensors as planned, {n} blocks equal")
    assert note.endswith("8 tokens computed with finite logits")


# ---- who may read what


def test_the_token_goes_to_the_hub_alone(sharded: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded.server.faults.token = "hf_secret"
    with pytest.raises(SourceError, match=r"no such model on .* or a private one.*HF_TOKEN"):
        sharded.convert()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    sharded.server.requests.clear()
    sharded.convert()
    sent = {(r.cdn, r.headers.get("authorization")) for r in sharded.server.requests if r.file}
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


def test_a_gated_model(sharded: Desk) -> None:
    sharded.server.faults.gated = True
    with pytest.raises(SourceError, match=r"a gated model: accept its terms at .*HF_TOKEN") as bad:
        sharded.convert()
    assert "\n" not in str(bad.value)


def test_no_such_model_or_revision(sharded: Desk) -> None:
    with pytest.raises(SourceError, match="someone/other: no such model"):
        sharded.convert("someone/other")
    with pytest.raises(SourceError, match="someone/tiny: no revision 'v9'"):
        sharded.convert(revision="v9")
    assert sharded.cached() == []


def test_no_network(sharded: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"no answer from http://127\.0\.0\.1:9") as caught:
        sharded.convert()
    assert "\n" not in str(caught.value)
    assert "there is no folder of that name" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_a_listing_that_nobody_answers_does_not_wait(
    sharded: Desk, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(client.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(DownloadError, match="no answer from"):
        sharded.convert()


def test_a_server_that_is_no_hub(sharded: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from hub_server import _Handler

    monkeypatch.setattr(_Handler, "_serve", lambda self, *a: self._answer(200, {}, b"<html>"))
    with pytest.raises(DownloadError, match="does not answer as the hub does"):
        sharded.convert()


def test_two_conversions_of_one_repository_do_not_mix(sharded: Desk) -> None:
    refused: list[ConvertError] = []

    def meddle(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(OutputError, match="another conversion is downloading it") as bad:
                source = HubSource(REPOSITORY)
                convert(ConvertSettings(source, sharded.out / "other.gguf", "q4_0"))
            refused.append(bad.value)

    sharded.progress = meddle
    sharded.convert()
    assert refused
    assert sharded.made() == ["m.gguf"]


# ---- settings


def test_options_without_effect(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"--keep-source: .* is a folder"):
        ConvertSettings(tmp_path, keep_source=True)
    for option in ({"verify": True}, {"keep_source": True}):
        with pytest.raises(UnsupportedError, match="no effect with --dry-run"):
            ConvertSettings(HubSource("a/b"), dry_run=True, **option)


# ---- the command line


def infer_os(desk: Desk, place: Path, *arguments: str) -> Any:
    import subprocess
    import sys

    script = "from infer_os.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=client_environment(desk, place),
        capture_output=True, text=True, cwd=desk.out, timeout=60,
    )  # fmt: skip


def test_the_command_line(sharded: Desk, tmp_path: Path) -> None:
    done = infer_os(
        sharded, tmp_path, "convert", REPOSITORY, "--type", "q8_0", "--json", "--verify"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "tiny-q8_0.gguf"
    assert sharded.made() == ["tiny-q8_0.gguf"]
    refused = infer_os(sharded, tmp_path, "convert", "someone/other")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: someone/other: no such model")
    assert refused.stderr.count("\n") == 1
    shutil.rmtree(tmp_path / "hf-home", ignore_errors=True)


def test_retries_wait_longer_and_longer() -> None:
    assert list(client.RETRY_WAITS) == sorted(client.RETRY_WAITS)
