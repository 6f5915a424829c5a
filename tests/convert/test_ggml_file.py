"""Old ggml files of GPT-J: the same GGUF as of the checkpoint, and what is refused."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ggml_writer import GPTJ, TYPES, OldFile, gptj, write
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from helpers import copy_checkpoint, read_tensors, write_tensors
from in_process import Cli, runner

from infer_os.convert.errors import ConvertError
from infer_os.convert.ggml_blocks import OLD_TYPES, OldBlocks
from infer_os.convert.ggml_file import GgmlFile, is_ggml
from infer_os.convert.origins import CONFIG_KEY
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.architectures import describe
from infer_os.native.gguf_file import GgufHeader, GgufTensor, read_gguf_header
from infer_os.store.planning import find_shape

QUANTIZED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def converted(source: Path, target: Path, kind: str) -> GgufHeader:
    tokenizer = None if source.is_dir() else GPTJ
    convert(ConvertSettings(source, target, kind, tokenizer=tokenizer))
    return read_gguf_header(target)


def tensor_bytes(header: GgufHeader, tensor: GgufTensor) -> bytes:
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        return file.read(tensor.n_bytes)


def assert_same(one: GgufHeader, other: GgufHeader) -> None:
    """All but the name and the config that the model has from its file."""
    assert {t.name: (t.shape, t.type) for t in one.tensors} == {
        t.name: (t.shape, t.type) for t in other.tensors
    }
    for mine, theirs in zip(one.tensors, other.tensors, strict=True):
        assert tensor_bytes(one, mine) == tensor_bytes(other, theirs), mine.name
    for key, value in other.metadata.items():
        if key not in ("general.name", CONFIG_KEY):
            found = one.metadata[key]
            same = list(found) == list(value) if hasattr(value, "__len__") else found == value
            assert same, key
    networks = [describe(json.loads(header.metadata[CONFIG_KEY])) for header in (one, other)]
    assert networks[0].rules == networks[1].rules


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_k_m"])
def test_a_file_of_floats_gives_what_its_checkpoint_gives(tmp_path: Path, kind: str) -> None:
    expected = converted(GPTJ, tmp_path / "hf.gguf", kind)
    for stored in ("f32", "f16"):
        path = write(tmp_path / f"{stored}.bin", gptj(stored, version=0))
        assert_same(converted(path, tmp_path / f"{stored}.gguf", kind), expected)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize(("magic", "container"), [(b"lmgg", None), (b"fmgg", 1), (b"tjgg", 3)])
def test_todays_blocks_keep_their_bits(
    tmp_path: Path, kind: str, magic: bytes, container: int | None
) -> None:
    file = replace(gptj(kind), magic=magic, container=container)
    wanted = kind if kind in ("q4_0", "q5_0", "q8_0") else "f32"  # others are no --type
    got = converted(write(tmp_path / "old.bin", file), tmp_path / "old.gguf", wanted)
    # a checkpoint of what gguf decodes from the blocks
    plain, tensors = copy_checkpoint(GPTJ, tmp_path / "plain"), read_tensors(GPTJ)
    for name, shape, number, data in file.tensors:
        if number == TYPES[kind]:
            rows = np.frombuffer(data, np.uint8).reshape(shape[0], -1)
            tensors[name] = dequantize(rows, GGMLQuantizationType[kind.upper()])
    write_tensors(plain, tensors)
    assert_same(got, converted(plain, tmp_path / "plain.gguf", wanted))
    if wanted != kind:
        return
    # and of these matrices, the very bytes
    stored = {name: data for name, _, _, data in file.tensors}
    ours = next(t for t in got.tensors if t.name == "blk.1.ffn_up.weight")
    assert ours.type.name == kind
    assert tensor_bytes(got, ours) == stored["transformer.h.1.mlp.fc_in.weight"]


def plain_decoding(kind: str, version: int, block: bytes) -> list[float]:
    """A block of ggml.c at the time, value by value."""
    number = "<e" if version == 2 or kind.startswith("q5") else "<f"
    size = struct.calcsize(number)
    scale, at = struct.unpack_from(number, block)[0], size
    minimum = 0.0
    if kind.endswith("_1"):
        minimum, at = struct.unpack_from(number, block, at)[0], 2 * size
    fifth = 0
    if kind.startswith("q5"):
        fifth, at = struct.unpack_from("<I", block, at)[0], at + 4
    values = []
    for i in range(32):
        if kind == "q8_0":
            whole = struct.unpack_from("<b", block, at + i)[0]
        else:
            first = i % 2 == 0 if version == 0 else i < 16
            byte = block[at + (i // 2 if version == 0 else i % 16)]
            whole = (byte & 15 if first else byte >> 4) | (fifth >> i & 1) << 4
            whole -= {"q4_0": 8, "q5_0": 16}.get(kind, 0)
        values.append(
            float(np.float32(np.float32(whole) * np.float32(scale)) + np.float32(minimum))
        )
    return values


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_blocks_of_every_version(kind: str, version: int) -> None:
    old = next(old for old in OLD_TYPES.values() if old.name == kind)
    layout = old.block(version)
    sizes = {"q4_0": 20, "q4_1": 24, "q5_0": 22, "q5_1": 24, "q8_0": 36}
    todays = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}
    assert layout.itemsize == (todays if version == 2 else sizes)[kind]
    random = np.random.default_rng(version)
    blocks = np.zeros((6, 3), layout)
    for name in layout.names or ():
        if name in ("scale", "minimum"):
            blocks[name] = random.standard_normal((6, 3))
        else:
            shape = blocks[name].shape
            raw = random.integers(0, 1 << 32, shape, np.uint32)
            blocks[name] = raw.astype(blocks[name].dtype)
    matrix = OldBlocks(blocks, old, version)
    assert matrix.shape == (6, 96)
    expected = [
        [x for block in row for x in plain_decoding(kind, version, block.tobytes())]
        for row in blocks
    ]
    assert np.array_equal(matrix.rows(slice(None)), np.array(expected, np.float32))
    assert np.array_equal(matrix.rows(np.array([4, 1])), matrix[:][[4, 1]])


def old_blocks(file: OldFile, version: int) -> OldFile:
    """The same values in blocks of an older version."""
    entries = []
    for name, shape, kind, data in file.tensors:
        if kind in OLD_TYPES:
            old = OLD_TYPES[kind]
            today = np.frombuffer(data, old.block(2))
            earlier = np.zeros(today.shape, old.block(version))
            for field in today.dtype.names or ():
                earlier[field] = today[field]
            if version == 0 and kind != TYPES["q8_0"]:
                whole = today["values"]
                order = np.concatenate((whole & 15, whole >> 4), axis=-1)
                earlier["values"] = order[:, ::2] | order[:, 1::2] << 4
            data = earlier.tobytes()
        entries.append((name, shape, kind, data))
    return replace(file, tensors=entries)


@pytest.mark.parametrize(("magic", "container"), [(b"lmgg", None), (b"tjgg", 1), (b"tjgg", 2)])
@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q8_0"])
def test_older_blocks_are_the_same_model(
    tmp_path: Path, kind: str, magic: bytes, container: int | None
) -> None:
    version = (container or 1) - 1
    expected = converted(write(tmp_path / "a.bin", gptj(kind)), tmp_path / "a.gguf", "f32")
    file = replace(old_blocks(gptj(kind), version), magic=magic, container=container)
    file.sizes[-1] %= 1000
    got = converted(write(tmp_path / "b.bin", file), tmp_path / "b.gguf", "f32")
    assert_same(got, expected)


def test_the_version_may_be_with_the_type(tmp_path: Path) -> None:
    file = old_blocks(gptj("q4_0", version=1), 1)
    expected = converted(write(tmp_path / "a.bin", gptj("q4_0")), tmp_path / "a.gguf", "f32")
    assert_same(converted(write(tmp_path / "b.bin", file), tmp_path / "b.gguf", "f32"), expected)


# ---- what is refused


def complaint(path: Path, tokenizer: Path | None = GPTJ) -> str:
    target = path.with_suffix(".gguf")
    with pytest.raises(ConvertError) as caught:
        convert(ConvertSettings(path, target, "f16", tokenizer=tokenizer))
    assert not target.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_first(file: OldFile, **changes: object) -> OldFile:
    """The same with another first tensor."""
    first = dict(zip(("name", "shape", "kind", "data"), file.tensors[0], strict=True)) | changes
    return replace(file, tensors=[tuple(first.values()), *file.tensors[1:]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: replace(f, sizes=[0, *f.sizes[1:]]), "sizes that no model has"),
        (lambda f: replace(f, sizes=[*f.sizes[:5], -1, 1]), "sizes that no model has"),
        (lambda f: replace(f, sizes=[*f.sizes[:6], 3001]), "version 3 of quantized blocks"),
        (lambda f: replace(f, n_tokens=7), "not a GPT-J"),
        (lambda f: replace(f, magic=b"tjgg", container=4), "version 4 of its kind"),
        (lambda f: replace(f, magic=b"fmgg", container=2), "version 2 of its kind"),
        (lambda f: replace(f, tokens=[b"x" * 5000, *f.tokens[1:]]), "a token of 5000 bytes"),
        (lambda f: replace(f, tokens=[*f.tokens[:9], b"?", *f.tokens[10:]]), "token 9 is"),
        (lambda f: replace(f, tensors=[*f.tensors, f.tensors[0]]), "is there twice"),
        (lambda f: replace(f, tensors=f.tensors[1:]), "missing"),
        (lambda f: with_first(f, shape=(1, 2, 3)), "3 dimensions"),
        (lambda f: with_first(f, shape=(1 << 25,)), "has the dimensions"),
        (lambda f: with_first(f, shape=(0,)), "has the dimensions"),
        (lambda f: with_first(f, name="n" * 200), "a name of 200 bytes"),
        (lambda f: with_first(f, kind=4), "type 4 in rows of"),
        (lambda f: with_first(f, kind=2, shape=(16,)), "type 2 in rows of 16"),
        (lambda f: with_first(f, kind=2, shape=(4, 40)), "type 2 in rows of 40"),
        (lambda f: with_first(f, name="other"), "other"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, change: object, words: str) -> None:
    file = change(gptj("f16"))  # type: ignore[operator]
    said = complaint(write(tmp_path / "old.bin", file))
    assert words in said
    assert str(tmp_path) in said or "tensors" in said or "missing" in said


def test_a_transposed_file(tmp_path: Path) -> None:
    file = gptj("f16")
    turned = [
        (name, shape[::-1], kind, np.frombuffer(data, "<f2").reshape(shape).T.tobytes())
        if name.endswith("mlp.fc_in.weight") else (name, shape, kind, data)
        for name, shape, kind, data in file.tensors
    ]  # fmt: skip
    assert "is transposed" in complaint(write(tmp_path / "a.bin", replace(file, tensors=turned)))


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_a_file_that_was_cut_off(tmp_path: Path, kind: str) -> None:
    data = gptj(kind).bytes()
    path = tmp_path / "old.bin"
    for length in (5, 20, 34, 400, 3000, 9000, len(data) - 1):
        path.write_bytes(data[:length])
        assert "truncated" in complaint(path)
    path.write_bytes(data)
    with GgmlFile(path) as file:
        assert len(file.tensors) == len(gptj(kind).tensors)
    path.write_bytes(data + b"\1")
    assert "truncated" in complaint(path)


def test_the_file_itself_is_not_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "old.bin", gptj("f16"))
    before = path.read_bytes()
    with pytest.raises(ConvertError, match="a file of the checkpoint"):
        convert(ConvertSettings(path, path, "f16", tokenizer=GPTJ, force=True))
    assert path.read_bytes() == before


def test_its_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "old.bin", gptj("f16"))
    assert "with --tokenizer" in complaint(path, None)
    assert "no tokenizer in this folder" in complaint(path, tmp_path)
    with pytest.raises(ConvertError, match="SOURCE has its own"):
        ConvertSettings(GPTJ, tokenizer=GPTJ)
    assert is_ggml(path) and not is_ggml(tmp_path) and not is_ggml(GPTJ / "config.json")
    assert find_shape(str(path)).n_embd == 64


@pytest.fixture
def infer_os(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Cli:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return runner(monkeypatch, capfdbinary)


def test_the_commands(infer_os: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "ggml-model-q4_0.bin", gptj("q4_0"))
    told = infer_os("convert", path, "--tokenizer", GPTJ, "--type", "q4_0", "--verify")
    assert told.code == 0, told.err
    assert "q4_0 blocks keep their bits with --type q4_0" in told.out + told.err
    made = tmp_path / "ggml-model-q4_0-q4_0.gguf"
    assert infer_os("generate", made, "-p", "a", "-n", "2").code == 0
    assert "infer-os convert FILE --tokenizer DIR" in infer_os("run", path, "a").user_error
    older = write(tmp_path / "older.bin", old_blocks(gptj("q4_0", version=1), 1))
    told = infer_os("convert", older, "--tokenizer", GPTJ, "--dry-run")
    assert "q4_0 blocks of an older form (version 1) are decoded" in told.out + told.err
