"""torch .bin files: every layout reads as its safetensors twin; every bad file is refused."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import random
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_os.convert import restricted_pickle
from infer_os.convert.errors import FileFormatError
from infer_os.convert.safetensors_file import SafetensorsFile
from infer_os.convert.torch_file import TorchFile

FILES = Path(__file__).parents[1] / "reference" / "torch_files"
LAYOUTS = sorted(path.name for path in FILES.glob("*.bin"))
BOTH = ["mixed.zip.bin", "mixed.legacy.bin"]


# a pickle, written by hand


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(kind: str = "FloatStorage", key: str = "0", numel: int = 6) -> bytes:
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), integer(numel)]
    return group(*parts) + b"Q"


def tensor(
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    offset: int = 0,
    source: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    sizes, steps = group(*map(integer, shape)), group(*map(integer, stride))
    hooks = name("collections", "OrderedDict") + b")R"
    args = group(source or storage(), integer(offset), sizes, steps, b"\x89", hooks, more)
    return name("torch._utils", "_rebuild_tensor_v2") + args + b"R"


def untyped(shape: bytes, stride: bytes, offset: bytes = b"K\0") -> bytes:
    args = group(storage(), offset, shape, stride)
    return name("torch._utils", "_rebuild_tensor") + args + b"R"


def state_dict(*values: bytes) -> bytes:
    items = b"".join(text(f"t{index}") + value for index, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


SIX = np.arange(6, dtype="<f4")


def write_zip(
    path: Path,
    data: bytes,
    storages: dict[str, bytes] | None = None,
    compressed: str = "",
    more: dict[str, bytes] | None = None,
) -> Path:
    entries = {"data.pkl": data, "byteorder": b"little", **(more or {})}
    for key, raw in (storages if storages is not None else {"0": SIX.tobytes()}).items():
        entries[f"data/{key}"] = raw
    with zipfile.ZipFile(path, "w") as archive:
        for entry, raw in entries.items():
            kind = zipfile.ZIP_DEFLATED if entry == compressed else zipfile.ZIP_STORED
            archive.writestr(f"x/{entry}", raw, kind)
    return path


def legacy(
    data: bytes,
    *,
    magic: Any = 0x1950A86A20F9469CFC6C,
    protocol: Any = 1001,
    little: bool = True,
    keys: Any = ("0",),
    numel: int = 6,
) -> bytes:
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (magic, protocol, system))
    tail = pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2)
    return head + data + tail + struct.pack("<q", numel) + SIX.tobytes()


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FileFormatError) as caught:
        TorchFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_same(path: Path, expected: Path) -> None:
    with TorchFile(path) as opened, SafetensorsFile(expected) as twin:
        assert opened.tensors.keys() == twin.tensors.keys()
        for key, stored in twin.tensors.items():
            ours, theirs = opened.array(key), twin.array(key)
            assert (opened.tensors[key].dtype, opened.tensors[key].shape) == (
                stored.dtype,
                stored.shape,
            )
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.tobytes() == theirs.tobytes(), key


# good files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_as_its_safetensors_twin(layout: str) -> None:
    assert_same(FILES / layout, FILES / f"{layout.split('.')[0]}.safetensors")


def test_every_layout_has_a_fixture() -> None:
    assert len(LAYOUTS) == 10
    assert b"_rebuild_parameter_with_state" in (FILES / "parameters.legacy.bin").read_bytes()
    assert b"_metadata" in (FILES / "module.legacy.bin").read_bytes()


@pytest.mark.parametrize("layout", BOTH)
def test_arrays_are_read_only_views(layout: str) -> None:
    with TorchFile(FILES / layout) as opened:
        base, turned = opened.array("f32"), opened.array("transposed")
        assert not base.flags.writeable and not base.flags.owndata
        assert np.shares_memory(base, turned)
        assert np.shares_memory(base, opened.array("tied"))
        assert turned.strides == base.strides[::-1]
        with pytest.raises(ValueError, match="read-only"):
            turned[0, 0] = 1


@pytest.mark.parametrize("layout", BOTH)
def test_an_array_outlives_close(layout: str) -> None:
    with TorchFile(FILES / layout) as opened:
        kept = opened.array("f32")
    assert np.isfinite(kept.sum())


def test_hand_written_files_read(tmp_path: Path) -> None:
    """The builders of the bad files below make good ones when nothing is wrong."""
    data = state_dict(tensor(), tensor((3, 2), (1, 3)), b"K\x07")
    for path in (
        write_zip(tmp_path / "zip.bin", data),
        write(tmp_path / "legacy.bin", legacy(data)),
    ):
        with TorchFile(path) as opened:
            assert list(opened.tensors) == ["t0", "t1"]
            assert np.array_equal(opened.array("t0"), SIX.reshape(2, 3))
            assert np.array_equal(opened.array("t1"), SIX.reshape(2, 3).T)


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Byte strings, OrderedDict's items as an argument, and a view of a storage (torch 0.3)."""
    view = group(b"U\x01v", integer(2), integer(3))
    parts = [b"U\x07storage", name("torch", "FloatStorage"), b"U\x010", b"U\x03cpu", integer(6)]
    old = name("torch._utils", "_rebuild_tensor")
    old += group(group(*parts, view) + b"Q", integer(1), group(b"K\x02"), group(b"K\x01")) + b"R"
    items = b"](](U\x01w" + old + b"ee"
    data = b"\x80\x02" + name("collections", "OrderedDict") + items + b"\x85R."
    with TorchFile(write(tmp_path / "old.bin", legacy(data))) as opened:
        assert np.array_equal(opened.array("w"), SIX[3:5])


def test_the_stride_of_a_dimension_of_one_is_not_used(tmp_path: Path) -> None:
    data = state_dict(tensor((1, 6), (2**62, 1)), tensor((6, 0), (2**62, 2**62)))
    with TorchFile(write_zip(tmp_path / "one.bin", data)) as opened:
        assert np.array_equal(opened.array("t0"), SIX.reshape(1, 6))
        assert opened.array("t1").shape == (6, 0)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict"])
def test_a_wrapped_state_dict(tmp_path: Path, wrapper: str) -> None:
    inner = state_dict(tensor())[2:-1]
    data = b"\x80\x02}(" + text(wrapper) + inner + text("epoch") + b"K\x01u."
    with TorchFile(write_zip(tmp_path / "wrapped.bin", data)) as opened:
        assert list(opened.tensors) == ["t0"]


def write_huge_zip(path: Path, numel: int) -> None:
    """A sparse zip64 archive, with one storage of `numel` floats of which the last is 1."""
    data = state_dict(tensor((numel,), (1,), 0, storage(numel=numel)))
    with path.open("wb") as file:
        directory = b""
        for entry, size in (("x/data.pkl", len(data)), ("x/data/0", 4 * numel)):
            raw, header = entry.encode(), file.tell()
            file.write(b"PK\3\4" + struct.pack("<5H3I2H", 45, *[0] * 7, len(raw), 0) + raw)
            if entry.endswith("pkl"):
                file.write(data)
            else:
                file.seek(size - 4, os.SEEK_CUR)
                file.write(struct.pack("<f", 1))
            extra = struct.pack("<2H3Q", 1, 24, size, size, header)
            fields = struct.pack(
                "<6H3I5H2I", 45, 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(raw), len(extra),
                0, 0, 0, 0, 2**32 - 1,
            )  # fmt: skip
            directory += b"PK\1\2" + fields + raw + extra
        start = file.tell()
        end64 = struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 2, 2, len(directory), start)
        locator = struct.pack("<IQI", 0, start + len(directory), 1)
        end = struct.pack("<4H2IH", 0, 0, 2, 2, len(directory), 2**32 - 1, 0)
        file.write(directory + b"PK\6\6" + end64 + b"PK\6\7" + locator + b"PK\5\6" + end)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_24_gigabyte_file_is_not_read(tmp_path: Path, layout: str) -> None:
    numel, path = 6_000_000_000, tmp_path / "huge.bin"
    if layout == "zip":
        write_huge_zip(path, numel)
    else:
        data = state_dict(tensor((numel,), (1,), 0, storage(numel=numel)))
        head = legacy(data, numel=numel)[:-24]
        path.write_bytes(head)
        with path.open("r+b") as file:
            file.seek(len(head) + 4 * (numel - 1))
            file.write(struct.pack("<f", 1))
    before = resident_bytes()
    with TorchFile(path) as opened:
        array = opened.array("t0")
        assert array.shape == (numel,) and array[0] == 0 and array[-1] == 1
        del array
        assert resident_bytes() - before < 8 << 20


# pickles that want to run something


class Sentinel:
    """Pickled, it calls os.system to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Evaluated(Sentinel):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(("kind", "wanted"), [(Sentinel, "system"), (Evaluated, "eval")])
def test_nothing_is_run(tmp_path: Path, protocol: int, kind: type[Sentinel], wanted: str) -> None:
    touched = tmp_path / "touched"
    payload = pickle.dumps({"w": kind(touched)}, protocol)
    for path in (
        write_zip(tmp_path / "zip.bin", payload),
        write(tmp_path / "legacy.bin", legacy(payload)),
        write(tmp_path / "magic.bin", pickle.dumps(kind(touched), max(protocol, 2))),
        write(tmp_path / "version.bin", legacy(state_dict(tensor()), protocol=kind(touched))),
        write(tmp_path / "keys.bin", legacy(state_dict(tensor()), keys=kind(touched))),
    ):
        message = refusal(path)
        # protocols 0 and 1 already fail at their text opcodes
        assert wanted in message or (protocol < 2 and "opcode" in message)
        assert not touched.exists()
    pickle.loads(payload)
    assert touched.exists(), "the payload itself does nothing: this test could not fail"


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch.nn.parameter", "Parameter"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy.core.multiarray", "scalar"),
    ],
)
def test_other_names_are_refused_by_name(tmp_path: Path, module: str, attribute: str) -> None:
    wanted = name(module, attribute)
    by_stack = text(module) + text(attribute) + b"\x93"
    for written in (wanted, by_stack):
        message = refusal(write_zip(tmp_path / "bad.bin", state_dict(written, tensor())))
        assert f"'{module}.{attribute}'" in message
        assert "safetensors" in message


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"(i" + b"posix\nsystem\n", "INST"),
        (b"(" + name("torch", "Size") + b"o", "OBJ"),
        (name("torch", "Size") + b")\x81", "NEWOBJ"),
        (name("torch", "Size") + b")}\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"Pabc\n", "PERSID"),
        (b"I1\n", "INT"),
        (b"\xff", "0xff"),
    ],
)
def test_other_opcodes_are_refused_by_name(tmp_path: Path, value: bytes, wanted: str) -> None:
    message = refusal(write_zip(tmp_path / "bad.bin", state_dict(value, tensor())))
    assert f"opcode {wanted} is not allowed" in message


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (name("torch", "FloatStorage") + b")R", "it calls torch.FloatStorage"),
        (text("os") + b")R", "it calls a value of type str"),
        (name("torch", "Size") + b"NR", "with a value of type NoneType for arguments"),
        (b"]}b", "sets the state of a value of type list"),
        (b"}}b", "sets the state of a value of type dict"),
        (tensor() + b"}b", "sets the state of a value of type TensorRecord"),
        (name("collections", "OrderedDict") + b"}b", "state of collections.OrderedDict"),
        (b"N(NNu", "sets items of a value of type NoneType"),
        (b"}(Nu", "key without a value"),
        (b")Na", "appends to a value of type tuple"),
        (b"h\x63", "memo entry 99 was never stored"),
        (b"r\xff\xff\xff\xff", "memo entry 4294967295"),
        (b"tt", "no mark"),
        (b"(R", "nothing on the stack"),
        (b"X\x01\0\0\0\xff", "not UTF-8"),
        (b"c" + b"a" * 300, "does not end within 256 bytes"),
        (b"NN\x93", "a name that is not a string"),
        (name("collections", "OrderedDict") + b"](](NNNee\x85R", "an item of collections"),
        (name("collections", "OrderedDict") + b"NN\x86R", "arguments of collections"),
        (name("torch", "Size") + b"N\x85R", "arguments of torch.Size"),
        (name("torch._utils", "_rebuild_parameter") + b"NNN\x87R", "_rebuild_parameter"),
        (name("torch._utils", "_rebuild_tensor_v2") + b")R", "_rebuild_tensor_v2"),
        (b"NQ", "other than tensors"),
        (group(text("module"), b"NNNN") + b"Q", "other than tensors"),
        (group(text("storage"), name("torch", "Size"), b"NNN") + b"Q", "type torch.Size"),
        (storage("ComplexFloatStorage"), "'torch.ComplexFloatStorage'"),
        (storage(numel=-1), "size of a storage"),
        (storage(numel=6) + storage(numel=7), "described twice"),
        (storage() + storage("LongStorage"), "described twice"),
        (untyped(b"]", b")"), "arguments of torch._utils._rebuild_tensor"),
        (untyped(b")", b"]"), "arguments of torch._utils._rebuild_tensor"),
        (untyped(b")", b")", b"N"), "arguments of torch._utils._rebuild_tensor"),
        (tensor(more=b"}(" + text("neg") + b"\x88u"), "negated"),
    ],
)
def test_what_no_state_dict_does_is_refused(tmp_path: Path, value: bytes, wanted: str) -> None:
    message = refusal(write_zip(tmp_path / "bad.bin", state_dict(value, tensor())))
    assert wanted in message


@pytest.mark.parametrize(
    ("view", "wanted"),
    [
        (group(text("v"), integer(4), integer(3)), "ends outside"),
        (group(text("v"), integer(-1), integer(3)), "view of a storage"),
        (group(text("v"), integer(0), integer(-3)), "view of a storage"),
        (b"]", "view of a storage"),
    ],
)
def test_views_of_storages_stay_inside(tmp_path: Path, view: bytes, wanted: str) -> None:
    parts = [text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(6)]
    data = state_dict(tensor((2,), (1,), 0, group(*parts, view) + b"Q"))
    assert wanted in refusal(write(tmp_path / "bad.bin", legacy(data)))


# bombs


def nested(levels: int, shared: bytes) -> bytes:
    """`levels` tuples, each of which holds the one before it twice."""
    return shared + b"q\0" + b"h\0\x86q\0" * levels


@pytest.mark.parametrize(
    "value",
    [
        nested(200, b")"),  # 2**200 tuples, were they ever walked
        nested(200, text("lol" * 1000)),
        b"}" + nested(200, b")") + b"Ns",  # as a key, they would be hashed
        b"](" + name("torch", "Size") + nested(200, b")") + b"\x85R" + b"e",
        b"]" * 500_000 + b"a" * 499_999,  # deep
    ],
    ids=["tuples", "strings", "key", "size", "deep"],
)
def test_bombs_cost_nothing(tmp_path: Path, value: bytes) -> None:
    start = time.perf_counter()
    with TorchFile(write_zip(tmp_path / "bomb.bin", state_dict(value, tensor()))) as opened:
        assert list(opened.tensors) == ["t1"]
    # exponential would be never; only a hang is excluded here, no speed
    assert time.perf_counter() - start < 60


def test_a_bomb_as_persistent_id_or_shape_is_refused(tmp_path: Path) -> None:
    bomb = nested(200, b")")
    for value in (bomb + b"Q", bomb + b")R", name("torch", "Size") + bomb + b"R"):
        refusal(write_zip(tmp_path / "bomb.bin", state_dict(value, tensor())))
    sized = name("torch._utils", "_rebuild_tensor")
    sized += group(storage(), integer(0), bomb, bomb) + b"R"
    assert "malformed offset, shape" in refusal(write_zip(tmp_path / "bomb.bin", state_dict(sized)))


def test_a_reduce_bomb_is_counted(tmp_path: Path) -> None:
    """Each REDUCE would copy the same long list: quadratic, unless the copies count as steps."""
    pairs = b"](" + b"h\0" * 100_000 + b"e\x85q\1"
    one = name("collections", "OrderedDict") + b"h\1Ra"
    value = text("k") + b"N\x86q\0" + pairs + b"]" + one * 1000
    message = refusal(write_zip(tmp_path / "bomb.bin", b"\x80\x02" + value + b"."))
    assert "more than 4000000 steps" in message


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"](" + b"N" * 1_000_001, "values on the stack"),
        (b"(" * 1001, "marks on the stack"),
        (b"N]" + b"Na" * 2_000_000, "more than 4000000 steps"),
    ],
    ids=["stack", "marks", "steps"],
)
def test_the_machine_is_bounded(tmp_path: Path, value: bytes, wanted: str) -> None:
    assert wanted in refusal(write_zip(tmp_path / "big.bin", b"\x80\x02" + value + b"."))


def test_the_number_of_tensors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restricted_pickle, "_MOST_TENSORS", 3)
    with TorchFile(write_zip(tmp_path / "few.bin", state_dict(*[tensor()] * 3))):
        pass
    message = refusal(write_zip(tmp_path / "many.bin", state_dict(*[tensor()] * 4)))
    assert "more than 3 tensors" in message


def test_the_size_of_a_pickle_is_bounded(tmp_path: Path) -> None:
    long = state_dict(text("a" * (64 << 20)), tensor())
    assert "of 67108864 allowed" in refusal(write_zip(tmp_path / "long.bin", long))
    assert "longer than 64 MiB" in refusal(write(tmp_path / "long.bin", legacy(long)))


# tensors


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (tensor((2, 3), (2**62, 1)), "reaches element"),
        (tensor((2, 3), (4, 1)), "reaches element 6 of a storage of 6"),
        (tensor((2, 3), (3, 1), 1), "reaches element 6"),
        (tensor((), (), 6), "reaches element 6"),
        (tensor((2, 3), (-3, 1)), "malformed offset, shape or stride"),
        (tensor((2, 3), (3, 1), -1), "malformed offset, shape or stride"),
        (tensor((-2, 3), (3, 1)), "malformed offset, shape or stride"),
        (tensor((2**63, 1), (0, 1)), "malformed offset, shape or stride"),
        (tensor((2**40, 2**40), (0, 0)), "larger than the whole file"),
        (tensor((0, 2**40, 2**40), (0, 0, 0)), "too large"),
        (tensor((1,) * 33, (1,) * 33), "33 dimensions"),
        (tensor((2, 3), (3,)), "2 dimensions and 1 strides"),
        (tensor((1, True), (1, 1)).replace(b"\x8a\x01\x01", b"\x88"), "malformed"),
    ],
)
def test_tensors_stay_in_their_storage(tmp_path: Path, bad: bytes, wanted: str) -> None:
    for path in (
        write_zip(tmp_path / "zip.bin", state_dict(bad)),
        write(tmp_path / "legacy.bin", legacy(state_dict(bad))),
    ):
        message = refusal(path)
        assert wanted in message and "tensor 't0'" in message


def test_a_tensor_of_an_empty_storage_is_refused(tmp_path: Path) -> None:
    data = state_dict(tensor(source=storage(numel=0)))
    message = refusal(write_zip(tmp_path / "bad.bin", data, {"0": b""}))
    assert "reaches element 5 of a storage of 0" in message


def test_a_storage_stays_in_the_file(tmp_path: Path) -> None:
    larger = state_dict(tensor((7,), (1,), 0, storage(numel=7)))
    message = refusal(write_zip(tmp_path / "bad.bin", larger))
    assert "storage '0' needs 28 bytes, but the zip file gives it 24" in message
    message = refusal(write(tmp_path / "bad.bin", legacy(larger, numel=7)))
    assert "storage '0' ends at byte" in message and "truncated" in message
    message = refusal(write(tmp_path / "bad.bin", legacy(state_dict(tensor()), numel=5)))
    assert "5 elements in the file, but 6 in the pickle" in message
    missing = state_dict(tensor(source=storage(key="9")))
    assert "'x/data/9' of the zip file is missing" in refusal(
        write_zip(tmp_path / "bad.bin", missing)
    )
    assert "storage '9' is not in the file" in refusal(
        write(tmp_path / "bad.bin", legacy(missing, keys=()))
    )


def test_a_zip_storage_has_the_size_of_its_elements(tmp_path: Path) -> None:
    data = state_dict(tensor())
    with TorchFile(write_zip(tmp_path / "odd.bin", data, {"0": bytes(27)})):
        pass  # bytes that make no element
    message = refusal(write_zip(tmp_path / "bad.bin", data, {"0": bytes(28)}))
    assert "storage '0' needs 24 bytes, but the zip file gives it 28" in message


@pytest.mark.parametrize("keys", [("0", "0"), ("1",), (0,), {"0": 0}, None])
def test_the_list_of_storages_is_checked(tmp_path: Path, keys: Any) -> None:
    path = write(tmp_path / "bad.bin", legacy(state_dict(tensor()), keys=keys))
    assert "list of storages is malformed" in refusal(path)


# containers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", range(16))
def test_truncated(tmp_path: Path, layout: str, part: int) -> None:
    raw = (FILES / layout).read_bytes()
    message = refusal(write(tmp_path / "short.bin", raw[: len(raw) * part // 16]))
    assert "truncated" in message or "empty" in message


@pytest.mark.parametrize("entry", ["data.pkl", "byteorder", "data/0"])
def test_a_compressed_entry_is_refused_by_name(tmp_path: Path, entry: str) -> None:
    path = write_zip(tmp_path / "bad.bin", state_dict(tensor()), compressed=entry)
    assert f"'x/{entry}' of the zip file is compressed" in refusal(path)


def patched_zip(path: Path, entry: str, at: int, layout: str, value: int) -> Path:
    """A good archive of which one field of an entry's directory record is overwritten."""
    write_zip(path, state_dict(tensor(), tensor(source=storage(key="1"))), {
        "0": SIX.tobytes(), "1": SIX.tobytes(),
    })  # fmt: skip
    raw = bytearray(path.read_bytes())
    record = raw.rindex(f"x/{entry}".encode()) - 46
    assert raw[record : record + 4] == b"PK\1\2"
    struct.pack_into(layout, raw, record + at, value)
    return write(path, bytes(raw))


@pytest.mark.parametrize(
    ("entry", "at", "layout", "value", "wanted"),
    [
        ("data/0", 42, "<I", 2**31, "no header at byte 2147483648"),
        ("data/0", 42, "<I", 1, "no header at byte 1"),
        ("data/0", 42, "<I", 0, "another name in its header"),
        ("data/0", 8, "<H", 1, "encrypted"),
        ("data/0", 24, "<I", 2**31, "compressed"),
        ("data.pkl", 42, "<I", 2**31, "no header at byte"),
    ],
)
def test_offsets_of_the_zip_directory_are_checked(
    tmp_path: Path, entry: str, at: int, layout: str, value: int, wanted: str
) -> None:
    message = refusal(patched_zip(tmp_path / "bad.bin", entry, at, layout, value))
    assert wanted in message and f"'x/{entry}'" in message


def test_a_local_header_must_fit_in_the_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.bin", state_dict(tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\3\4"
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rindex(b"x/data/0") - 46 + 42, len(raw) - 4)
    assert "has no header at byte" in refusal(write(path, bytes(raw)))


def test_a_zip_entry_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = patched_zip(tmp_path / "bad.bin", "data/1", 24, "<I", 2**31)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rindex(b"x/data/1") - 46 + 20, 2**31)
    message = refusal(write(path, bytes(raw)))
    assert "'x/data/1' of the zip file ends at byte 2147" in message


def test_an_extra_field_cannot_move_data_out_of_the_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.bin", state_dict(tensor()))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, raw.index(b"x/data/0") - 2, 65535)
    message = refusal(write(path, bytes(raw)))
    assert "'x/data/0' of the zip file ends at byte 65" in message


def test_storages_of_a_zip_do_not_overlap(tmp_path: Path) -> None:
    """The header of the second storage lies in the data of the first."""
    inner = b"PK\3\4" + bytes(22) + struct.pack("<HH", 8, 0) + b"x/data/1" + SIX.tobytes()
    outer = inner + bytes(-len(inner) % 4)
    data = state_dict(
        tensor(source=storage(numel=len(outer) // 4)), tensor(source=storage(key="1"))
    )
    path = write_zip(tmp_path / "bad.bin", data, {"0": outer, "1": SIX.tobytes()})
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rindex(b"x/data/1") - 46 + 42, raw.index(inner))
    assert "storages '0' and '1' overlap" in refusal(write(path, bytes(raw)))


def test_a_zip_directory_that_lies_is_refused(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "bad.bin", state_dict(tensor())).read_bytes()
    end = good.rindex(b"PK\5\6")
    for at, layout, value in (
        (12, "<I", 2**31),  # its size
        (16, "<I", 2**31),  # its place
        (12, "<I", 7),
        (10, "<H", 0),
    ):
        raw = bytearray(good)
        struct.pack_into(layout, raw, end + at, value)
        path = write(tmp_path / "bad.bin", bytes(raw))
        try:
            TorchFile(path).close()  # zipfile does not believe the count
        except FileFormatError as error:
            assert str(path) in str(error)
        else:
            assert at == 10


def test_a_zip_directory_is_bounded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.bin", "w") as archive:
        archive.writestr("x/data.pkl", state_dict(tensor()))
        record = zipfile.ZipInfo("x/large")
        archive.writestr(record, b"")
        record.comment = b"c" * 65535
        for _ in range(300):  # the same record again and again: a directory of 19 MiB
            archive.filelist.append(record)
    assert "central directory is too large" in refusal(tmp_path / "bad.bin")


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    data = state_dict(tensor())
    assert "byte order is 'big'" in refusal(write_zip(path, data, more={"byteorder": b"big"}))
    assert "TorchScript" in refusal(write_zip(path, data, more={"constants.pkl": b"x"}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "0 entries named data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("y/data.pkl", data)
    assert "2 entries named data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data.pkl", data)
    assert "same name" in refusal(path)


def test_other_legacy_files_are_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "bad.bin", state_dict(tensor())
    assert "not one that torch.save wrote" in refusal(write(path, legacy(data, magic=42)))
    assert "not protocol version 1001" in refusal(write(path, legacy(data, protocol=1000)))
    assert "little-endian" in refusal(write(path, legacy(data, little=False)))
    assert "not one that torch.save wrote" in refusal(write(path, pickle.dumps({"a": 1})))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    with tarfile.open(path, "w") as archive:
        for part in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(part), io.BytesIO())
    assert "tar format" in refusal(path)
    assert "Git LFS pointer" in refusal(write(path, b"version https://git-lfs.github.com/spec/v1"))
    assert "begins with b'<!DOCTYP'" in refusal(write(path, b"<!DOCTYPE html>"))
    assert "empty" in refusal(write(path, b""))
    assert "cannot be read" in refusal(tmp_path / "none.bin")
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\x80\x02}.", "a value of type dict"),
        (b"\x80\x02].", "a value of type list"),
        (b"\x80\x02" + tensor() + b".", "a value of type TensorRecord"),
        (state_dict(b"K\x01", b"]"), "a dictionary of ['t0', 't1']"),
        (b"\x80\x02}(K\x01" + tensor() + b"u.", "a value of type dict"),
        (b"\x80\x02}(" + text("module") + b"}" + text("a") + tensor() + b"su.", "['module']"),
        (b"\x80\x02}(" + text("state_dict") + b"Nu.", "['state_dict']"),
        (
            b"\x80\x02}(" + text("state_dict") + b"}" + text("model_state_dict") + b"}u.",
            "more than one state dict",
        ),
    ],
)
def test_a_file_without_tensors_is_refused(tmp_path: Path, data: bytes, wanted: str) -> None:
    assert wanted in refusal(write_zip(tmp_path / "bad.bin", data))


# chance, and torch itself


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flipped_bytes_read_or_are_refused(tmp_path: Path, layout: str) -> None:
    good, chance = (FILES / layout).read_bytes(), random.Random(layout)
    refused = 0
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        path = write(tmp_path / "flipped.bin", bytes(raw))
        try:
            with TorchFile(path) as opened:
                for key in opened.tensors:
                    opened.array(key).tobytes()
        except FileFormatError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize("modern", [True, False])
def test_reads_what_torch_reads(tmp_path: Path, modern: bool) -> None:
    # a folder of that name would pass for the module; only the module has a version
    torch = pytest.importorskip("torch", minversion="1.0")
    path = tmp_path / "live.bin"
    base = torch.randn(40, 30)
    saved = {
        "base": base, "turned": base.t(), "part": base[3:9, 2:20:3], "half": base.half(),
        "numbers": torch.arange(9).reshape(3, 3), "scalar": torch.tensor(2.5),
        "brain": base.bfloat16().t(), "held": torch.nn.Parameter(torch.ones(3)),
    }  # fmt: skip
    torch.save(saved, path, _use_new_zipfile_serialization=modern)
    loaded = torch.load(path, weights_only=True)
    with TorchFile(path) as opened:
        assert opened.tensors.keys() == loaded.keys()
        for key, theirs in loaded.items():
            ours = opened.array(key)
            assert ours.shape == tuple(theirs.shape)
            flat = theirs.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            assert ours.tobytes() == flat.tobytes(), key
