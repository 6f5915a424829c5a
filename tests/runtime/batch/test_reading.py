from __future__ import annotations

import csv
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from infer_os.runtime.batch import lines, reading
from infer_os.runtime.batch.reading import count_records, read_pipe, read_values
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
    assert "line 3: not JSON" in got[1].error
    assert got[2] == (4, [3])
    assert got[3] == BadRecord(5, "line 5: is not UTF-8 text")
    assert got[4] == (6, {"id": 2})
    assert count_records(tmp_path / "a.jsonl") == 5


def test_other_encodings_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert values(path, b"\xef\xbb\xbf[1]\n") == [(1, [1])]
    (utf16,) = values(path, "[1]\n".encode("utf-16-be"))
    assert isinstance(utf16, BadRecord)
    for name in ("a.jsonl", "a.csv", "a.txt"):
        for encoding in ("utf-16", "utf-16-be", "utf-32"):
            text = "\ufeff" * (encoding == "utf-16-be") + "id\n"
            with pytest.raises(SettingsError, match=r"is UTF-16 or UTF-32 .* save it as UTF-8"):
                values(tmp_path / name, text.encode(encoding))


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
        (1, {"id": 1, "prompt": "x"}, "row"),
        (2, {"id": 2, "prompt": "y", "seed": 3}, "row"),
    ]
    assert count_records(path) == 2
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(SettingsError, match="not a Parquet file"):
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
    assert list(read_pipe(io.BytesIO(b'\n{"id": 1}\n'))) == [(2, {"id": 1})]
    assert list(read_pipe(io.BytesIO(b"one\ntwo\n"))) == [
        (1, {"id": 1, "prompt": "one"}),
        (2, {"id": 2, "prompt": "two"}),
    ]
    assert list(read_pipe(io.BytesIO(b""))) == []


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    for data in (b'{"id": "a", "prompt": "x"}\n', b"one\ntwo\n", b'[{"id": 1}]', b"\n{\n}"):
        assert list(read_pipe(io.BytesIO(MARK + data))) == list(read_pipe(io.BytesIO(data)))
    for name, data in (
        ("a.txt", b"one\n"), ("a.jsonl", b'{"id": 1}\n'), ("a.json", b'[{"id": 1}]'),
        ("a.csv", b"id,prompt\n1,x\n"),
    ):  # fmt: skip
        assert values(tmp_path / name, MARK + data) == values(tmp_path / name, data) != []


ROWS = [{"id": 1, "prompt": "a [b], {c}\n"}, {"id": "x", "messages": [{"role": "user"}]}, {}]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_a_list_of_objects(
    indent: int | None, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    expected = [(i, row, "record") for i, row in enumerate(ROWS, 1)]
    data = json.dumps(ROWS, indent=indent).encode()
    assert values(tmp_path / "a.json", data) == expected
    assert list(read_pipe(io.BytesIO(b"\n " + data + b"\n"))) == expected
    # objects one after the other, each over several lines
    if indent is not None:
        spread = "\n".join(json.dumps(row, indent=indent) for row in ROWS[:2]).encode()
        assert values(tmp_path / "a.json", spread) == expected[:2]
    assert count_records(tmp_path / "a.json") is None
    assert values(tmp_path / "a.json", b"[]") == values(tmp_path / "a.json", b" [\n]\n") == []


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'[{"id": 1}, {"id": 2]', "Expecting ',' delimiter"),
        (b'[{"id": 1}, {"id": 2}', "the list has no end"),
        (b'[{"id": 1}, {"id": "x', "Unterminated string starting at character"),
        (b'[{"id": 1} {"id": 2}]', "a comma is missing"),
        (b'[{"id": 1}] x', "follows the end of the list"),
        (b'[{"id": 1}, "\xff"]', "is not UTF-8 text"),
        (b'[{"id": 1}, ' + b"[" * 200_000, "nested too deeply"),
        (b'[{"id": 1}, {"id": ' + b"1" * 5000 + b"}]", "thousands of digits"),
        (b'[{"id": 1}, {"a": 1, "a": 2}]', 'the key "a" occurs twice'),
    ],
)
def test_a_broken_list_ends_in_one_error(data: bytes, complaint: str, tmp_path: Path) -> None:
    got = values(tmp_path / "a.json", data)
    assert isinstance(got[-1], BadRecord)
    assert complaint in got[-1].error and "the rest was not read" in got[-1].error
    assert all(not isinstance(value, BadRecord) for value in got[:-1])


def test_text_in_brackets_is_no_list() -> None:
    assert list(read_pipe(io.BytesIO(b"[Verse 1]\nIt is\n"))) == [
        (1, {"id": 1, "prompt": "[Verse 1]"}), (2, {"id": 2, "prompt": "It is"}),
    ]  # fmt: skip


def test_numbers_and_keys_that_json_readers_disagree_on(tmp_path: Path) -> None:
    data = b'{"id": ' + b"1" * 5000 + b'}\n{"id": 1, "id": 2}\n{"id": 3}\n'
    big, twice, fine = values(tmp_path / "a.jsonl", data)
    assert big == BadRecord(1, "line 1: not JSON: a number has thousands of digits")
    assert twice == BadRecord(2, 'line 2: not JSON: the key "id" occurs twice')
    assert fine == (3, {"id": 3})


def test_a_long_line_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST", 100)
    for name, line in (("a.jsonl", b'{"prompt": "x"}'), ("a.txt", b"x")):
        data = line + b"\n" + b"y" * 1000 + b"\n" + line + b"\n"
        first, long, last = values(tmp_path / name, data)
        assert isinstance(long, BadRecord) and long.error.startswith("line 2: longer than")
        assert (first[0], last[0]) == (1, 3)
        assert count_records(tmp_path / name) == 3
    # no end, like /dev/zero
    monkeypatch.setattr(lines, "MOST_PASSED", 5000)
    with pytest.raises(SettingsError, match="not records"):
        values(tmp_path / "a.txt", b"\0" * 100_000)
    big = values(tmp_path / "a.json", b'[{"id": "' + b"x" * 200_000 + b'"}]')
    assert isinstance(big[0], BadRecord) and "more than 100 characters" in big[0].error


def test_a_csv_field_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    prompt = "9,She was so,2\n" * 20_000
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([["id", "prompt"], ["1", "x"], ["2", prompt], ["3", "y"]])
    got = list(read_values(path))
    assert [value[1]["id"] for value in got] == ["1", "2", "3"]
    assert got[1][1]["prompt"] == prompt


@pytest.mark.parametrize(
    "bad",
    [b'2,"a\n9,inner,\n"b', b'2,"a"x\n', b'2,"a\n9,inner\n"x\n', b"2," + b"z" * 500 + b"\n",
     b'2,"' + b"9,inner\n" * 50 + b'"\n'],
)  # fmt: skip
def test_lines_of_a_broken_csv_row_are_no_rows(
    bad: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LARGEST", 100)
    got = values(tmp_path / "a.csv", b"id,prompt\n1,x\n" + bad + b'"\n' * (bad[-1:] != b"\n"))
    assert got[0] == (2, {"id": "1", "prompt": "x"})
    assert [type(value) for value in got[1:]] == [BadRecord], got
    assert "not CSV" in got[1].error
    if bad.endswith(b"\n"):
        after = values(tmp_path / "a.csv", b"id,prompt\n1,x\n" + bad + b"3,y\n")
        assert after[-1][1] == {"id": "3", "prompt": "y"}
        assert len(after) == 3


def test_deep_json_in_a_field_is_one_bad_row(tmp_path: Path) -> None:
    for column in ("messages", "stop"):
        data = f"id,prompt,{column}\n1,x,\n2,,{'[' * 100_000}\n3,y,\n".encode()
        first, deep, last = values(tmp_path / "a.csv", data)
        assert isinstance(deep, BadRecord)
        assert deep.error == f'line 3: "{column}" is not JSON: it is nested too deeply'
        assert (first[1]["id"], last[1]["id"]) == ("1", "3")


def test_a_name_for_two_columns(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="two columns have the name 'prompt'"):
        values(tmp_path / "a.csv", b"prompt,prompt\nx,y\n")


def test_a_pipe_in_place_of_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)
    assert count_records(path) is None  # opening it would take what it holds
    writer = threading.Thread(target=path.write_bytes, args=(b'{"id": 1}\n',))
    writer.start()
    assert list(read_values(path)) == [(1, {"id": 1})]
    writer.join()
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        with pytest.raises(SettingsError, match="Is a directory"):
            read_values(tmp_path / "folder" / name)
