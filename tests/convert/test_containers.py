"""A checkpoint folder's weights: whichever files hold them, the same tensors come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import PARALLEL, TESTS, read_tensors
from hub_fixtures import make_repository, write_index

from infer_os.convert.checkpoint import CONTAINERS, open_checkpoint
from infer_os.convert.errors import FileFormatError, SourceError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings

GPTJ = TESTS / "reference" / "gptj"


def converted_bytes(folder: Path, target: Path) -> bytes:
    convert(ConvertSettings(folder, target, "q4_0"))
    return target.read_bytes()


@pytest.mark.parametrize("container", ["bin", "bin-legacy", "bin-sharded", "safetensors-sharded"])
@pytest.mark.parametrize("reference", [PARALLEL, GPTJ], ids=lambda path: path.name)
def test_every_container_converts_to_the_same_bytes(
    tmp_path: Path, reference: Path, container: str
) -> None:
    # the folder's name is in the file
    first = make_repository(tmp_path / "a" / "model", reference, "safetensors")
    other = make_repository(tmp_path / "b" / "model", reference, container)
    expected = converted_bytes(first, tmp_path / "a.gguf")
    assert converted_bytes(other, tmp_path / "b.gguf") == expected


def test_a_safetensors_file_wins(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "model", PARALLEL, "safetensors")
    assert (folder / "pytorch_model.bin").read_bytes().startswith(b"never read")
    checkpoint = open_checkpoint(folder)
    assert {tensor.path.name for tensor in checkpoint.tensors.values()} == {"model.safetensors"}


def test_a_bin_files_tensors_are_known_from_its_header(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "model", PARALLEL, "bin-sharded")
    tensors = open_checkpoint(folder).tensors
    stored = read_tensors(PARALLEL)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: array.shape for name, array in stored.items()
    }


def test_a_bin_shard_that_is_missing(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "model", PARALLEL, "bin-sharded")
    (folder / "pytorch_model-00002-of-00004.bin").unlink()
    with pytest.raises(SourceError, match=r"1 of 4 shards are missing: pytorch_model-00002"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../x.bin", "/x.bin", "a/b.bin", "", "..", 3, None])
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = make_repository(tmp_path / "model", PARALLEL, "bin-sharded")
    write_index(folder, {"embed_out.weight": name})
    with pytest.raises(FileFormatError, match="is not the name of a file in this folder"):
        open_checkpoint(folder)


def test_a_folder_without_weights_names_all_that_would_do(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "model", PARALLEL, "bin")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(SourceError, match="no weights in this folder") as caught:
        open_checkpoint(folder)
    assert all(whole in str(caught.value) for whole, _, _ in CONTAINERS)
