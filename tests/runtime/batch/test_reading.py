from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from infer_os.runtime.batch.reading import count_records, read_stream, read_values
from infer_os.runtime.batch.records import BadRecord
from infer_os.runtime.errors import SettingsError


def values(path: Path, data: bytes) -> list[Any]:
    path.write_bytes(data)
    return list(read_values(path))


def test_json_lines(tmp_path: Path) -> None:
    data = b'{"id": 1}\n\n{"id": \n[3]\n{"id": "\xff"}\n{"id": 2}'
    got = values(tmp_path / "a.jsonl", data)
    assert got[0] == (1, {"id": 1})
    assert isinstance(got[1], BadRecord) and got[1].line == 3
    assert "line 3: no JSON" in got[1].error
    assert got[2] == (4, [3])
    assert got[3] == BadRecord(5, "line 5: is no UTF-8 text")
    assert got[4] == (6, {"id": 2})
    assert count_records(tmp_path / "a.jsonl") == 5


def test_other_encodings_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert values(path, b"\xef\xbb\xbf[1]\n") == [(1, [1])]
    assert values(path, b"\xff\xfe\n") == [BadRecord(1, "line 1: is no UTF-8 text")]
    (utf16,) = values(path, "[1]\n".encode("utf-16-be"))
    assert isinstance(utf16, BadRecord)


def test_deep_json_is_a_bad_line(tmp_path: Path) -> None:
    assert isinstance(values(tmp_path / "a.jsonl", b"[" * 200_000)[0], BadRecord)


def test_plain_lines(tmp_path: Path) -> None:
    got = values(tmp_path / "a.txt", "one\r\n\nzwei ü\n".encode())
    assert got == [(1, {"id": 1, "prompt": "one"}), (3, {"id": 3, "prompt": "zwei ü"})]


def test_csv(tmp_path: Path) -> None:
    data = (
        'id,prompt,max_tokens,temperature,stop,messages\n1,"two\nlines",5,0.5,,\n'
        'b,x,many,,"[""a"", ""b""]",\nshort\n3,,,,end,"[{""role"": ""user""}]"\n'
    )
    got = values(tmp_path / "a.csv", b"\xef\xbb\xbf" + data.encode())
    assert got[0] == (3, {"id": "1", "prompt": "two\nlines", "max_tokens": 5, "temperature": 0.5})
    assert got[1] == (4, {"id": "b", "prompt": "x", "max_tokens": "many", "stop": ["a", "b"]})
    assert isinstance(got[2], BadRecord) and "1 fields under 6" in got[2].error
    assert got[3] == (6, {"id": "3", "stop": "end", "messages": [{"role": "user"}]})


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    rows = [{"id": 1, "prompt": "x", "seed": None}, {"id": 2, "prompt": "y", "seed": 3}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_values(path)) == [
        (1, {"id": 1, "prompt": "x"}),
        (2, {"id": 2, "prompt": "y", "seed": 3}),
    ]
    assert count_records(path) == 2
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(SettingsError, match="no Parquet file"):
        list(read_values(path))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"x")
    with pytest.raises(SettingsError, match=r"infer-os\[parquet\]"):
        list(read_values(path))


@pytest.mark.parametrize("name", ["a.xml", "a"])
def test_an_unknown_ending(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a name"):
        read_values(tmp_path / name)


def test_a_missing_file_is_seen_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_values(tmp_path / "a.jsonl")


def test_a_pipe_says_itself_what_it_is() -> None:
    assert list(read_stream(io.BytesIO(b'\n{"id": 1}\n'))) == [(1, {"id": 1})]
    assert list(read_stream(io.BytesIO(b"one\ntwo\n"))) == [
        (1, {"id": 1, "prompt": "one"}),
        (2, {"id": 2, "prompt": "two"}),
    ]
    assert list(read_stream(io.BytesIO(b""))) == []
