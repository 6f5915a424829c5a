from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from infer_os.runtime.batch.journal import Journal, check_results, journal_path, line_of, table_rows
from infer_os.runtime.batch.records import Result, TokenLogprobs
from infer_os.runtime.errors import ResultsUnwritten, SettingsError

ONE = Result("a", 1, "text ü", (1, 2), "end")
TWO = Result("b", 2, "x", (3,), "length", index=1)
BAD = Result(None, 3, error="line 3: no JSON")


def write(path: Path, *results: Result) -> None:
    with Journal(path, resume=False) as journal:
        for result in results:
            journal.write(result)
        journal.finish()


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path, resume=False) as journal:
        journal.write(ONE)
        assert json.loads(path.read_text())["text"] == "text ü"


def test_resume_knows_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ONE, TWO, BAD)
    with Journal(path, resume=True) as journal:
        assert journal.done == {("a", 0), ("b", 1), (None, 3)}
        journal.write(Result("c", 4))
    assert [json.loads(line)["id"] for line in path.open()] == ["a", "b", None, "c"]


@pytest.mark.parametrize("tail", [b'{"id": "c", "te', b"{", b"\0\0\0\0", b"\0\0\n"])
def test_a_half_written_end_is_cut_off(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ONE, TWO)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal(path, resume=True) as journal:
        assert journal.done == {("a", 0), ("b", 1)}
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "text",
    ['{"my": "data"}\n{"my": "data"}\n', "text\n", "text", "{}", "[]\n",
     '{"id": 1, "text": "whole, and of another program"}'],
)  # fmt: skip
def test_a_file_of_others_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(SettingsError, match="line 1 is not an answer of a batch"):
        Journal(path, resume=True)
    assert path.read_text() == text


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with (
        Journal(path, resume=False) as journal,
        pytest.raises(SettingsError, match="another run"),
    ):
        journal.write(ONE)
        Journal(path, resume=False)
    assert path.read_bytes() == line_of(ONE)


def test_an_output_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line_of(ONE))
    with pytest.raises(SettingsError, match="already exists"):
        Journal(path, resume=False, replace=False)
    assert path.read_bytes() == line_of(ONE)


def test_an_empty_output_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path, resume=False).close()
    assert not path.exists()


def test_syncs_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    now = [0.0]
    with Journal(tmp_path / "a.jsonl", resume=False, clock=lambda: now[0]) as journal:
        journal.write(ONE)
        assert len(synced) == 0
        now[0] = 6
        journal.write(TWO)
        assert len(synced) == 1
        journal.write(BAD)
        assert len(synced) == 1
        journal.finish()
        assert len(synced) == 2


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    real = os.write

    def full(handle: int, data: bytes) -> int:
        real(handle, bytes(data)[:5])
        raise OSError(28, "No space left on device")

    with Journal(path, resume=False) as journal:
        journal.write(ONE)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResultsUnwritten, match="No space left on device; --resume") as caught:
            journal.write(TWO)
    assert caught.value.exit_code == 1
    assert path.read_bytes() == line_of(ONE)


def test_csv_comes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with Journal(path, resume=False) as journal:
        for result in (ONE, TWO, BAD):
            journal.write(result)
        assert not path.exists()
        assert journal_path(path).exists()
        journal.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["id"] for row in rows] == ["a", "b", ""]
    assert json.loads(rows[0]["tokens"]) == [1, 2]
    assert rows[1]["index"] == "1"
    assert rows[2]["error"] == "line 3: no JSON"


def test_parquet_comes_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    write(path, ONE, BAD, Result(7, 8, logprobs=(TokenLogprobs(1, "x", -1.0, ((1, -1.0),)),)))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == ["a", None, "7"]
    assert rows[0]["tokens"] == [1, 2]
    assert json.loads(rows[2]["logprobs"])[0]["top"] == [[1, -1.0]]


def test_a_complete_table_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, ONE)
    with Journal(path, resume=True) as journal:
        assert journal.is_complete
        journal.finish()
    assert path.exists() and not journal_path(path).exists()


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv"):
        path = tmp_path / name
        check_results(path, resume=False, force=False)
        journal_path(path).write_text("")
        with pytest.raises(SettingsError, match=r"already exists; --resume .* --force"):
            check_results(path, resume=False, force=False)
        check_results(path, resume=True, force=False)
        check_results(path, resume=False, force=True)
    with pytest.raises(SettingsError, match="give one of them"):
        check_results(tmp_path / "a.jsonl", resume=True, force=True)
    with pytest.raises(SettingsError, match="does not exist"):
        check_results(tmp_path / "no" / "a.jsonl", resume=False, force=False)
    with pytest.raises(SettingsError, match="expected a name"):
        check_results(tmp_path / "a.txt", resume=False, force=False)


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    source, other = tmp_path / "in.jsonl", tmp_path / "link.jsonl"
    source.write_text("mine\n")
    other.symlink_to(source)
    for path in (source, other):
        for resume, force in ((True, False), (False, True), (False, False)):
            with pytest.raises(SettingsError, match="is also the input"):
                check_results(path, resume=resume, force=force, source=source)
    check_results(tmp_path / "out.jsonl", resume=False, force=False, source=source)


def test_a_run_that_fails_before_its_first_answer_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ONE, TWO)
    whole = path.read_bytes()
    Journal(path, resume=False).close()
    assert path.read_bytes() == whole
    write(path, TWO)
    assert path.read_bytes() == line_of(TWO)
    write(path)
    assert path.read_bytes() == b""


def test_no_nan_and_no_half_characters() -> None:
    odd = Result("\ud800", 1, logprobs=(TokenLogprobs(1, "x", float("-inf"), ()),))
    value = json.loads(line_of(odd), parse_constant=pytest.fail)
    assert value["id"] == "\ud800"
    assert value["logprobs"][0]["logprob"] is None


def test_an_answer_without_its_line_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ONE, TWO)
    path.write_bytes(path.read_bytes()[:-1])
    with Journal(path, resume=True) as journal:
        assert journal.done == {("a", 0), ("b", 1)}
        journal.write(BAD)
    assert path.read_bytes() == line_of(ONE) + line_of(TWO) + line_of(BAD)


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"  \n", b"\n\n\n"])
@pytest.mark.parametrize("tail", [b"", b"\0\0\0", b'{"id": "c", "te'])
def test_blank_lines_cost_no_answer(blank: bytes, tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = blank + line_of(ONE) + blank + line_of(TWO)
    path.write_bytes(whole + tail)
    with Journal(path, resume=True) as journal:
        assert journal.done == {("a", 0), ("b", 1)}
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "odd",
    [b"\0\0\0\n", b"\0\0", b'{"id": 1}\n', b'{"id": 7, "te\n', b"note\n", b'"id text tokens"\n',
     b"[" * 100_000 + b"\n", b'{"id": 1.5, "text": "", "tokens": [], "finish_reason": "end", '
     b'"error": null}\n', b'{"id": 1, "text": "", "tokens": [], "finish_reason": "end", '
     b'"error": "x", "line": 1e999}\n'],
)  # fmt: skip
def test_an_odd_line_between_answers_is_refused_and_nothing_deleted(
    odd: bytes, tmp_path: Path
) -> None:
    for name in ("a.jsonl", "a.csv"):
        path = journal_path(tmp_path / name)
        data = line_of(ONE) + odd + line_of(TWO)
        path.write_bytes(data)
        with pytest.raises(SettingsError, match="line 2 is not an answer of a batch; remove it"):
            Journal(tmp_path / name, resume=True)
        assert path.read_bytes() == data


def test_a_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    data = b"\xef\xbb\xbf" + (line_of(ONE) + line_of(TWO)).replace(b"\n", b"\r\n")
    path.write_bytes(data)
    with Journal(path, resume=True) as journal:
        assert journal.done == {("a", 0), ("b", 1)}
    assert path.read_bytes() == data


def test_a_table_of_a_journal_with_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    journal_path(path).write_bytes(line_of(ONE) + b"\n" + line_of(TWO))
    with Journal(path, resume=True) as journal:
        journal.finish()
    assert table_rows(path) == 2


def test_numbers_stay_numbers_in_a_table_with_errors(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    for ids, expected in (([5, None], [5, None]), ([5, 1 << 70], ["5", str(1 << 70)])):
        path = tmp_path / "a.parquet"
        write(path, *(Result(i, 1, error="x" if i is None else None) for i in ids))
        assert [row["id"] for row in pyarrow.parquet.read_table(path).to_pylist()] == expected
        assert table_rows(path) == 2
