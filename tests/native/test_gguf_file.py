"""The bounded GGUF reader: agrees with ``gguf.GGUFReader``, and one bad file per error."""

from __future__ import annotations

import dataclasses
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import (
    Converter,
    RawGguf,
    array_key,
    gguf_string,
    string_key,
    tensor_entry,
    u32,
    u32_key,
    u64,
)

from infer_os.native import gguf_file
from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import GgufArray, GgufHeader, read_gguf_header

GOOD_TENSORS = [tensor_entry("a", (4, 2), offset=0), tensor_entry("b", (32,), 8, offset=32)]
GOOD = RawGguf(
    keys=[
        string_key("general.architecture", "x"),
        u32_key("x.block_count", 2),
        array_key("x.words", 8, 2, gguf_string("one") + gguf_string("zwei")),
        array_key("x.numbers", 5, 3, struct.pack("<3i", -1, 0, 7)),
    ],
    tensors=GOOD_TENSORS,
    data=bytes(32 + 34),
)


def written(path: Path, raw: RawGguf) -> Path:
    path.write_bytes(raw.bytes())
    return path


def read_everything(header: GgufHeader) -> list[object]:
    """Touch all that a caller may: lazily decoded arrays and derived numbers too."""
    values = [list(v) if isinstance(v, GgufArray) else v for v in header.metadata.values()]
    numbers = (header.n_params, header.weight_bytes, header.bits_per_weight, header.architecture)
    return [*values, *numbers]


# ---- good files


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
def test_a_converted_file_reads_as_gguf_reader_reads_it(converted: Converter, kind: str) -> None:
    path = converted(kind=kind)
    header, other = read_gguf_header(path), gguf.GGUFReader(path)
    fields = {k: v for k, v in other.fields.items() if not k.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, field in fields.items():
        value = header.metadata[key]
        ours = list(value) if isinstance(value, GgufArray) else value
        assert ours == field.contents(), key
    assert len(header.tensors) == len(other.tensors)
    for mine, theirs in zip(header.tensors, other.tensors, strict=True):
        assert mine.name == theirs.name
        assert list(mine.shape) == list(theirs.shape)
        assert mine.type.name == theirs.tensor_type.name.lower()
        assert mine.n_bytes == theirs.n_bytes
        assert header.data_offset + mine.offset == theirs.data_offset
    assert header.file_bytes == path.stat().st_size
    assert header.weight_bytes == sum(int(t.n_bytes) for t in other.tensors)
    assert header.n_params == sum(int(t.n_elements) for t in other.tensors)


def test_every_value_type(tmp_path: Path) -> None:
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "x")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_float32("f32", 1.5)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "grün 東京")
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 0.1)
    writer.add_array("floats", [0.5, -2.0])
    writer.add_array("flags", [True, False, True])
    writer.add_array("texts", ["", "a", "東京"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    metadata = read_gguf_header(path).metadata
    assert {k: v for k, v in metadata.items() if not isinstance(v, GgufArray)} == {
        "general.architecture": "x", "u8": 255, "i8": -128, "u16": 65535, "i16": -32768,
        "u32": 2**32 - 1, "i32": -(2**31), "f32": 1.5, "yes": True, "no": False,
        "text": "grün 東京", "u64": 2**64 - 1, "i64": -(2**63), "f64": 0.1,
    }  # fmt: skip
    arrays = {k: list(v) for k, v in metadata.items() if isinstance(v, GgufArray)}
    assert arrays == {
        "floats": [0.5, -2.0], "flags": [True, False, True], "texts": ["", "a", "東京"],
    }  # fmt: skip


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    header = read_gguf_header(written(tmp_path / "good.gguf", GOOD))
    assert header.architecture == "x"
    assert list(header.metadata["x.words"]) == ["one", "zwei"]
    assert list(header.metadata["x.numbers"]) == [-1, 0, 7]
    assert len(header.metadata["x.numbers"]) == 3
    assert [(t.name, t.shape, t.type.name, t.n_bytes) for t in header.tensors] == [
        ("a", (4, 2), "f32", 32),
        ("b", (32,), "q8_0", 34),
    ]
    assert header.bits_per_weight == 8 * (32 + 34) / (8 + 32)


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    raw = RawGguf(
        keys=[u32_key("general.alignment", alignment)],
        tensors=[tensor_entry("a", (2,)), tensor_entry("b", (2,), offset=alignment)],
        alignment=alignment,
        data=bytes(alignment + 8),
    )
    header = read_gguf_header(written(tmp_path / "aligned.gguf", raw))
    assert header.alignment == alignment
    assert header.data_offset % alignment == 0


def test_without_tensors(tmp_path: Path) -> None:
    header = read_gguf_header(written(tmp_path / "vocabulary.gguf", RawGguf()))
    assert (header.tensors, header.bits_per_weight) == ((), 0.0)


# ---- bad files: one per error


def changed(**values: object) -> RawGguf:
    return dataclasses.replace(GOOD, **values)  # type: ignore[arg-type]


def with_key(key: bytes) -> RawGguf:
    return changed(keys=[*GOOD.keys, key])


def with_tensor(*entries: bytes) -> RawGguf:
    return changed(tensors=list(entries), data=bytes(4096))


MAX64 = 2**64 - 1

BAD: dict[str, tuple[RawGguf, str]] = {
    "magic": (changed(magic=b"GGML"), "not a GGUF file"),
    "reversed magic": (changed(magic=b"FUGG"), "not a GGUF file"),
    "version 0": (changed(version=0), "version 0"),
    "version 1": (changed(version=1), "version 1"),
    "version 4": (changed(version=4), "version 4"),
    "version of the other byte order": (changed(version=3 << 24), "GGUF version"),
    "many tensors": (changed(n_tensors=(1 << 16) + 1), "65537 tensors"),
    "absurd tensors": (changed(n_tensors=MAX64), "tensors; at most"),
    "negative tensors": (changed(n_tensors=1 << 63), "tensors; at most"),
    "more tensors than there are": (changed(n_tensors=3, data=b""), "truncated|dimensions|type"),
    "many keys": (changed(n_keys=(1 << 16) + 1), "65537 metadata keys"),
    "absurd keys": (changed(n_keys=MAX64), "metadata keys; at most"),
    "long key": (changed(keys=[u64(1 << 17) + b"k" * (1 << 17)]), "metadata key of 131072 bytes"),
    "absurd key": (changed(keys=[u64(MAX64)]), "metadata key of"),
    "key past the end": (changed(keys=[u64(60000)], tensors=[]), "truncated"),
    "key not UTF-8": (with_key(gguf_string(b"\xff\xfe") + u32(4) + u32(1)), "not UTF-8"),
    "key twice": (with_key(u32_key("x.block_count", 3)), "'x.block_count' occurs twice"),
    "unknown value type": (with_key(gguf_string("k") + u32(13) + u32(0)), "unknown value type 13"),
    "absurd value type": (with_key(gguf_string("k") + u32(2**32 - 1)), "unknown value type"),
    "string past the end": (with_key(gguf_string("k") + u32(8) + u64(10_000)), "truncated"),
    "absurd string": (with_key(gguf_string("k") + u32(8) + u64(MAX64)), "truncated"),
    "array past the end": (with_key(array_key("k", 4, 10_000, b"")), "claims 10000 values"),
    "absurd array": (with_key(array_key("k", 0, MAX64, b"")), "claims"),
    "array whose bytes overflow": (with_key(array_key("k", 10, 1 << 61, b"")), "claims"),
    "absurd string array": (with_key(array_key("k", 8, 1 << 62, b"")), "claims"),
    "string array past the end": (
        with_key(array_key("k", 8, 3, gguf_string("a") + u64(1 << 40))), "truncated"),
    "string in an array whose end overflows": (
        with_key(array_key("k", 8, 2, u64(MAX64) + gguf_string("a"))), "truncated"),
    "array in an array": (
        with_key(array_key("k", 9, 1, u32(4) + u64(1) + u32(7))), "unsupported type 9"),
    "array of an unknown type": (with_key(array_key("k", 99, 1, u32(7))), "unsupported type 99"),
    "alignment 0": (with_key(u32_key("general.alignment", 0)), "alignment 0"),
    "alignment 1": (with_key(u32_key("general.alignment", 1)), "alignment 1"),
    "alignment 48": (with_key(u32_key("general.alignment", 48)), "alignment 48"),
    "alignment 2^31": (with_key(u32_key("general.alignment", 1 << 31)), "alignment 2147483648"),
    "alignment as text": (with_key(string_key("general.alignment", "32")), "alignment '32'"),
    "tensor name of 64": (with_tensor(tensor_entry("n" * 64, (4,))), "tensor name of 64 bytes"),
    "absurd tensor name": (with_tensor(u64(MAX64)), "tensor name of"),
    "tensor name not UTF-8": (with_tensor(tensor_entry(b"\xc3", (4,))), "not UTF-8"),
    "no dimensions": (with_tensor(tensor_entry("t", ())), "0 dimensions"),
    "5 dimensions": (with_tensor(tensor_entry("t", (1, 1, 1, 1, 1))), "5 dimensions"),
    "absurd dimensions": (with_tensor(tensor_entry("t", (4,), n_dims=2**32 - 1)), "dimensions"),
    "a dimension of 0": (with_tensor(tensor_entry("t", (4, 0))), r"shape \(4, 0\)"),
    "a first dimension of 0": (with_tensor(tensor_entry("t", (0,))), r"shape \(0,\)"),
    "a negative dimension": (with_tensor(tensor_entry("t", (4, MAX64))), "has the shape"),
    "a dimension of 2^49": (with_tensor(tensor_entry("t", (1 << 49,))), "has the shape"),
    "a product that overflows 64 bits": (
        with_tensor(tensor_entry("t", (1 << 40, 1 << 40, 1 << 40))), "truncated"),
    "a product that overflows to something small": (
        with_tensor(tensor_entry("t", (1 << 32, 1 << 32, 1))), "truncated"),
    "bytes that overflow": (with_tensor(tensor_entry("t", (1 << 48, 1 << 14), 0)), "truncated"),
    "unknown type": (with_tensor(tensor_entry("t", (4,), 43)), "unknown type 43"),
    "removed type": (with_tensor(tensor_entry("t", (32,), 4)), "unknown type 4"),
    "absurd type": (with_tensor(tensor_entry("t", (4,), 2**32 - 1)), "unknown type"),
    "rows that do not divide": (with_tensor(tensor_entry("t", (33,), 8)), "rows of 33"),
    "offset not aligned": (
        with_tensor(tensor_entry("t", (4,), offset=8)), "offset 8 is not aligned"),
    "absurd offset": (with_tensor(tensor_entry("t", (4,), offset=1 << 63)), "truncated"),
    "offset plus size overflows": (
        with_tensor(tensor_entry("t", (4,), offset=2**64 - 32)), "truncated"),
    "overlap": (
        with_tensor(tensor_entry("a", (16,)), tensor_entry("b", (4,), offset=32)), "'b' overlaps"),
    "the same place": (
        with_tensor(tensor_entry("a", (4,)), tensor_entry("b", (4,))), "overlaps"),
    "tensor twice": (
        with_tensor(tensor_entry("a", (4,)), tensor_entry("a", (4,), offset=32)),
        "'a' occurs twice"),
    "data cut": (changed(data=bytes(32 + 33)), "truncated: tensor 'b' ends at byte"),
    "no data": (changed(data=b""), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file(name: str, tmp_path: Path) -> None:
    raw, message = BAD[name]
    path = written(tmp_path / "bad.gguf", raw)
    with pytest.raises(GgufError, match=message) as caught:
        read_gguf_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="no such file"):
        read_gguf_header(tmp_path / "none.gguf")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="a folder"):
        read_gguf_header(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    with pytest.raises(GgufError, match="empty"):
        read_gguf_header(path)


def test_a_device(tmp_path: Path) -> None:
    with pytest.raises(GgufError):
        read_gguf_header(Path(os.devnull))


def test_every_truncation_of_a_file_written_by_hand(tmp_path: Path) -> None:
    whole = GOOD.bytes()
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(GgufError):
            read_gguf_header(path)
    path.write_bytes(whole)
    read_gguf_header(path)


def test_truncations_of_a_converted_file(converted: Converter, tmp_path: Path) -> None:
    whole = converted(kind="q8_0").read_bytes()
    start = read_gguf_header(converted(kind="q8_0")).data_offset
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    lengths = [*range(0, start, 7), *np.linspace(start, len(whole) - 33, 40, dtype=int)]
    for length in sorted(lengths, reverse=True):
        os.truncate(path, int(length))
        with pytest.raises(GgufError):
            read_gguf_header(path)


def _flipped(draw: random.Random, data: bytes, reach: int) -> bytes:
    spoiled = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(reach)
        kind = draw.random()
        if kind < 0.5:
            spoiled[at] ^= 1 << draw.randrange(8)
        elif kind < 0.8:
            spoiled[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        else:
            spoiled[at : at + 8] = u64(draw.choice((0, 1, MAX64, 1 << 63, 1 << 32, 1 << 48)))
    return bytes(spoiled)


@pytest.mark.parametrize("reach", ["hand", "converted"])
def test_flipped_bytes_are_refused_or_read(
    converted: Converter, tmp_path: Path, reach: str
) -> None:
    if reach == "hand":
        data, count = GOOD.bytes(), 3000
        limit = len(GOOD.header())
    else:
        path = converted(kind="q4_0")
        data, count = path.read_bytes(), 1000
        limit = read_gguf_header(path).data_offset
    draw = random.Random(11)
    path = tmp_path / "flipped.gguf"
    refused = 0
    for _ in range(count):
        spoiled = _flipped(draw, data, limit)
        path.write_bytes(spoiled)
        try:
            read_everything(read_gguf_header(path))
        except GgufError:
            refused += 1
    assert 0 < refused < count


def test_random_bytes_behind_the_magic(tmp_path: Path) -> None:
    draw = random.Random(12)
    path = tmp_path / "noise.gguf"
    for _ in range(500):
        path.write_bytes(b"GGUF" + u32(3) + draw.randbytes(draw.randint(0, 300)))
        with pytest.raises(GgufError):
            read_gguf_header(path)


def test_a_small_header_never_makes_the_reader_allocate_much(tmp_path: Path) -> None:
    tracemalloc_limit = 8 << 20
    import tracemalloc

    claims: list[Callable[[], RawGguf]] = [
        lambda: with_key(array_key("k", 0, 1 << 40, b"")),
        lambda: with_key(gguf_string("k") + u32(8) + u64(1 << 40)),
        lambda: changed(n_tensors=1 << 16),
        lambda: changed(n_keys=1 << 16),
        lambda: with_tensor(tensor_entry("t", (1 << 48, 1 << 48, 1 << 48, 1 << 48))),
    ]
    for claim in claims:
        path = written(tmp_path / "claim.gguf", claim())
        tracemalloc.start()
        try:
            with pytest.raises(GgufError):
                read_gguf_header(path)
            assert tracemalloc.get_traced_memory()[1] < tracemalloc_limit
        finally:
            tracemalloc.stop()


def test_a_large_header_is_read_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_SETTLED_NS", 0)
    path = tmp_path / "large.gguf"

    def write(first: str) -> None:
        writer = gguf.GGUFWriter(path, "gpt2")
        writer.add_token_list([first, *(f"token number {i}" for i in range(60_000))])
        writer.add_tensor("a", np.zeros((4, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write("x")
    header = read_gguf_header(path)
    assert read_gguf_header(path) is header
    write("y")
    os.utime(path, ns=(1, 1))
    changed = read_gguf_header(path)
    assert next(iter(changed.metadata["tokenizer.ggml.tokens"])) == "y"
