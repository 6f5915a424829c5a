"""A hub with one tiny repository, and everything that a conversion from it touches in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import copy_checkpoint, read_tensors, write_shards
from hub_server import HubServer, commit_of
from torch_writer import write_torch

from infer_os.convert import hub as client
from infer_os.convert.pipeline import convert
from infer_os.convert.report import ConversionReport
from infer_os.convert.settings import ConvertSettings
from infer_os.native.gguf_file import read_gguf_header
from infer_os.store.resolve import find_source

REPOSITORY = "someone/tiny"
#: Other frameworks' files and what else lies about in a repository.
STRANGERS = (
    "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "onnx/model.onnx", "README.md",
    ".gitattributes", "onnx/config.json", "model.fp16.safetensors",
)  # fmt: skip
CONTAINERS = ("safetensors", "safetensors-sharded", "bin", "bin-legacy", "bin-sharded")


@dataclass
class Desk:
    """Where a test works: the server, the cache, the folder of outputs."""

    server: HubServer
    cache: Path
    out: Path
    progress: Callable[[int, int], None] | None = None
    most_shards: list[int] = field(default_factory=lambda: [0])

    @property
    def target(self) -> Path:
        return self.out / "m.gguf"

    def convert(self, name: str = REPOSITORY, kind: str = "q8_0", **more: Any) -> ConversionReport:
        source = find_source(name, more.pop("revision", None))
        settings = ConvertSettings(source, more.pop("output", self.target), kind, **more)
        return convert(settings, self.progress)

    def commit(self, revision: str = "main") -> str:
        return commit_of(REPOSITORY, revision)

    def cached(self) -> list[str]:
        """Names of all files in our cache."""
        return sorted(path.name for path in self.cache.rglob("*") if path.is_file())

    def made(self) -> list[str]:
        """Names of all files beside the output."""
        return sorted(path.name for path in self.out.iterdir())

    def watch_shards(self) -> None:
        """Count, at every request, the shards that are on the disk, whole or in part."""

        def look(request: Any) -> None:
            shards = [n for n in self.cached() if n.removesuffix(".incomplete").endswith(WEIGHTS)]
            self.most_shards[0] = max(self.most_shards[0], len(shards))

        self.server.on_request = look

    def shard_downloads(self) -> list[str]:
        """Shards whose content was asked for, beyond the header."""
        return [
            r.file for r in self.server.requests
            if r.file.endswith(WEIGHTS) and not r.cdn and not r.range.startswith("bytes=0-")
        ]  # fmt: skip


WEIGHTS = (".safetensors", ".bin")


@contextmanager
def environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A server that the hub's client speaks to, and fresh caches in ``place``."""
    from huggingface_hub import constants

    desk = Desk(HubServer(), place / "cache", place / "out")
    desk.out.mkdir()
    with desk.server as server:
        monkeypatch.setenv("INFER_OS_CACHE", str(desk.cache))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hf"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(client, "RETRY_WAITS", (0.0, 0.0, 0.0))
        yield desk


def client_environment(desk: Desk, place: Path) -> dict[str, str]:
    """The variables that send another process to the server."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": desk.server.url, "HF_HOME": str(place / "hf-home"),
        "INFER_OS_CACHE": str(desk.cache), "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip


def make_repository(place: Path, reference: Path, container: str, n_shards: int = 4) -> Path:
    """A reference checkpoint as a hub folder, its weights in a container, strangers around it."""
    folder = copy_checkpoint(reference, place)
    tensors = read_tensors(folder)
    names = sorted(tensors)
    shards = [{name: tensors[name] for name in names[i::n_shards]} for i in range(n_shards)]
    for path in [*folder.glob("*.npy"), *folder.glob("model*")]:
        path.unlink()
    if container == "safetensors":
        shutil.copy(_single(reference, tensors, place), folder / "model.safetensors")
    elif container == "safetensors-sharded":
        write_shards(folder, shards)
    elif container == "bin-sharded":
        weight_map = {}
        for i, shard in enumerate(shards, 1):
            name = f"pytorch_model-{i:05}-of-{n_shards:05}.bin"
            write_torch(folder / name, shard, legacy=i % 2 == 0)
            weight_map |= dict.fromkeys(shard, name)
        write_index(folder, weight_map)
    else:
        write_torch(folder / "pytorch_model.bin", tensors, legacy=container == "bin-legacy")
    if container.startswith("safetensors"):
        # the hub offers both of many models
        (folder / "pytorch_model.bin").write_bytes(b"never read" * 1000)
    for name in STRANGERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never read" * 1000)
    return folder


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    import json

    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(text)


def _single(reference: Path, tensors: dict[str, Any], place: Path) -> Path:
    from safetensors.numpy import save_file

    path = place.parent / f"{place.name}-single.safetensors"
    save_file(tensors, path)
    return path


def weights(path: Path) -> bytes:
    """Everything behind the header of a GGUF file."""
    return path.read_bytes()[read_gguf_header(path).data_offset :]
