"""Conversion from the hub when something breaks: cut connections, wrong content, kill -9."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PARALLEL, edit_json
from hub_fixtures import REPOSITORY, Desk, client_environment, environment, make_repository
from safetensors.numpy import load_file, save_file

from infer_os.convert import hub as client
from infer_os.convert import hub_checkpoint, pipeline
from infer_os.convert.errors import DownloadError, OutputError, SourceError
from infer_os.convert.shard_journal import ShardJournal
from infer_os.convert.source import HubSource

FIRST, SECOND, THIRD, FOURTH = (f"model-{i:05}-of-00004.safetensors" for i in range(1, 5))
LEFT = [".m.gguf.journal", ".m.gguf.part"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A repository of four safetensors shards, whose headers are a small part of them."""
    monkeypatch.setattr(hub_checkpoint, "_FIRST_BYTES", 8 << 10)
    with environment(tmp_path, monkeypatch) as made:
        folder = make_repository(tmp_path / "repo", PARALLEL, "safetensors-sharded")
        made.server.repositories[REPOSITORY] = {"main": folder}
        yield made
    assert made.server.errors == []


@pytest.fixture
def expected(desk: Desk) -> bytes:
    """What an undisturbed conversion writes."""
    target = desk.out / "undisturbed.gguf"
    desk.convert(output=target)
    data = target.read_bytes()
    target.unlink()
    desk.server.requests.clear()
    return data


class Interrupter:
    """Raises KeyboardInterrupt when ``after`` bytes of progress have come."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


def interrupt(desk: Desk, after: int, kind: str = "q8_0") -> None:
    desk.progress = Interrupter(after)
    with pytest.raises(KeyboardInterrupt):
        desk.convert(kind=kind)
    desk.progress = None
    desk.server.requests.clear()


def shard_bytes(desk: Desk, name: str) -> int:
    return (desk.server.repositories[REPOSITORY]["main"] / name).stat().st_size


def source_bytes(desk: Desk) -> int:
    folder = desk.server.repositories[REPOSITORY]["main"]
    return sum(path.stat().st_size for path in folder.glob("model-*.safetensors"))


# ---- connections


def test_cut_connections_are_resumed_by_range(desk: Desk, expected: bytes) -> None:
    # more often than there are attempts that may bring nothing
    desk.server.faults.cut_after, desk.server.faults.cuts = 15_000, 6
    desk.server.faults.only = FIRST
    desk.convert()
    assert desk.target.read_bytes() == expected
    rest = [f"bytes={n}-" for n in range(15_000, 97_000, 15_000)]
    assert desk.server.ranges(FIRST) == ["bytes=0-8191", "", *rest]


def test_a_cut_header_is_resumed_too(desk: Desk, expected: bytes) -> None:
    desk.server.faults.cut_after, desk.server.faults.cuts = 3_000, 2
    desk.server.faults.only = FIRST
    desk.convert()
    assert desk.target.read_bytes() == expected
    wanted = ["bytes=0-8191", "bytes=3000-8191", "bytes=6000-8191", ""]
    assert desk.server.ranges(FIRST) == wanted


def test_a_cut_header_without_ranges(desk: Desk, expected: bytes) -> None:
    desk.server.faults.no_ranges = True
    desk.server.faults.cut_after, desk.server.faults.cuts = 300, 2
    desk.convert()
    assert desk.target.read_bytes() == expected


def test_a_server_without_ranges(desk: Desk, expected: bytes) -> None:
    desk.server.faults.no_ranges = True
    desk.server.faults.cut_after, desk.server.faults.cuts = 30_000, 3
    desk.server.faults.only = FIRST
    calls: list[tuple[int, int]] = []
    desk.progress = lambda done, total: calls.append((done, total))
    desk.convert()
    assert desk.target.read_bytes() == expected
    assert desk.server.ranges(FIRST) == ["bytes=0-8191", "", *["bytes=30000-"] * 2]
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_asked_again(desk: Desk, expected: bytes, status: int) -> None:
    desk.server.faults.status, desk.server.faults.failures = status, 3
    desk.convert()
    assert desk.target.read_bytes() == expected


def test_a_refusal_is_not_asked_again(desk: Desk) -> None:
    desk.server.faults.status, desk.server.faults.failures = 403, 9
    with pytest.raises(SourceError, match="refuses the token"):
        desk.convert()
    assert desk.server.faults.failures == 8


def test_a_lost_network_leaves_what_came(desk: Desk, expected: bytes) -> None:
    faults = desk.server.faults
    faults.only = THIRD

    def lose(request: Any) -> None:
        if request.file == THIRD and not request.range.startswith("bytes=0-"):
            faults.cut_after, faults.cuts = 20_000 if not request.range else 0, 99

    desk.server.on_request = lose
    with pytest.raises(DownloadError, match=r"no answer from .* after 4 attempts .*to continue"):
        desk.convert()
    assert desk.made() == LEFT
    assert f"{THIRD}.incomplete" in desk.cached()
    assert not {FIRST, SECOND, THIRD} & set(desk.cached())
    faults.cuts = 0
    desk.server.on_request = lambda request: None
    desk.server.requests.clear()
    report = desk.convert()
    assert desk.target.read_bytes() == expected
    assert desk.shard_downloads() == [THIRD, FOURTH]
    assert desk.server.ranges(THIRD)[-1] == "bytes=20000-"
    assert "resume: 2 of 4 shards were written before" in report.notes
    assert (desk.made(), desk.cached()) == (["m.gguf"], [])


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "HF_ENDPOINT is set, but empty: expected an address such as https://hug"),
        ("huggingface.co", "HF_ENDPOINT huggingface.co: expected an address"),
        ("ftp://huggingface.co", "HF_ENDPOINT ftp://huggingface.co: expected"),
        ("https://", "HF_ENDPOINT https://: expected"),
    ],
)
def test_an_address_that_is_none_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, says: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it was tried again"))
    with pytest.raises(SourceError, match=says):
        client.list_repository(HubSource("someone/tiny"))


def test_attempts_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client, "RETRY_WAITS", (1.0, 2.0, 4.0))
    monkeypatch.setattr(time, "sleep", waits.append)
    desk.server.faults.status, desk.server.faults.failures = 500, 3
    desk.convert()
    assert [wait for wait in waits if wait] == [1.0, 2.0, 4.0]


# ---- content


def test_wrong_content_is_downloaded_once_more(desk: Desk, expected: bytes) -> None:
    desk.server.faults.corrupt, desk.server.faults.only = 2, SECOND
    calls: list[tuple[int, int]] = []
    desk.progress = lambda done, total: calls.append((done, total))
    desk.convert()  # the first wrong answer is the header's, whose last byte nobody reads
    assert desk.target.read_bytes() == expected
    assert calls[-1][0] == calls[-1][1]
    assert desk.server.ranges(SECOND)[-2:] == ["", ""]


def test_wrong_content_twice_is_an_error(desk: Desk) -> None:
    desk.server.faults.corrupt, desk.server.faults.only = 99, SECOND
    with pytest.raises(DownloadError, match=rf"{SECOND} came twice with the wrong hash \w{{64}}"):
        desk.convert()
    assert not [name for name in desk.cached() if name.startswith(SECOND)]
    assert desk.server.ranges(SECOND)[-2:] == ["", ""]


def test_a_small_files_hash_is_checked_too(desk: Desk) -> None:
    desk.server.faults.corrupt, desk.server.faults.only = 99, "config.json"
    with pytest.raises(DownloadError, match=r"config\.json came twice with the wrong hash \w{40},"):
        desk.convert()


def test_a_damaged_part_of_a_shard_is_found(desk: Desk, expected: bytes) -> None:
    interrupt(desk, 1)
    (part,) = desk.cache.rglob("*.incomplete")
    part.write_bytes(bytes(len(part.read_bytes())))
    desk.convert()
    assert desk.target.read_bytes() == expected
    assert len(desk.server.ranges(FIRST)) == 3  # the header, the rest, the whole again


def test_a_part_that_is_too_long(desk: Desk, expected: bytes) -> None:
    interrupt(desk, 1)
    (part,) = desk.cache.rglob("*.incomplete")
    part.write_bytes(bytes(1_000_000))
    calls: list[tuple[int, int]] = []
    desk.progress = lambda done, total: calls.append((done, total))
    desk.convert()
    assert desk.target.read_bytes() == expected
    assert calls[-1][0] == calls[-1][1]


def test_values_that_are_no_numbers_leave_nothing(desk: Desk) -> None:
    folder = desk.server.repositories[REPOSITORY]["main"]
    (folder / "model.fp16.safetensors").unlink()
    tensors = load_file(folder / THIRD)
    next(array for name, array in tensors.items() if name.endswith("weight")).flat[0] = np.nan
    save_file(tensors, folder / THIRD)
    with pytest.raises(SourceError, match="NaN"):
        desk.convert()
    assert (desk.made(), desk.cached()) == ([], [])


# ---- interrupted, and continued


def test_an_interrupted_shard_is_resumed_by_range(desk: Desk, expected: bytes) -> None:
    desk.server.faults.delay = 0.002
    interrupt(desk, 1)
    (part,) = desk.cache.rglob("*.incomplete")
    n_bytes = part.stat().st_size
    assert 0 < n_bytes < shard_bytes(desk, FIRST)
    calls: list[tuple[int, int]] = []
    desk.progress = lambda done, total: calls.append((done, total))
    desk.convert()
    assert calls[-1][0] == calls[-1][1]
    assert desk.server.ranges(FIRST)[-1] == f"bytes={n_bytes}-"
    assert desk.target.read_bytes() == expected


def test_a_later_run_continues_after_the_shards_that_are_written(
    desk: Desk, expected: bytes
) -> None:
    undisturbed = desk.convert(output=desk.out / "x.gguf")
    (desk.out / "x.gguf").unlink()
    interrupt(desk, int(1.2 * source_bytes(desk)))
    assert desk.made() == LEFT
    calls: list[tuple[int, int]] = []
    desk.progress = lambda done, total: calls.append((done, total))
    report = desk.convert()
    assert desk.target.read_bytes() == expected
    assert (desk.made(), desk.cached()) == (["m.gguf"], [])
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    (note,) = [note for note in report.notes if note.startswith("resume")]
    n_before = int(note.split()[1])
    assert 1 <= n_before <= 3
    # one more may have been on the disk, but not in the output
    assert desk.shard_downloads() in [
        [FIRST, SECOND, THIRD, FOURTH][n:] for n in (n_before, n_before + 1)
    ]
    # the errors of all shards are in the report
    assert [row.stats for row in report.classes] == [row.stats for row in undisturbed.classes]


@pytest.mark.parametrize(
    "change", ["type", "weights", "part", "header", "journal", "notes", "library"]
)
def test_another_conversion_starts_afresh(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    interrupt(desk, int(1.2 * source_bytes(desk)))
    assert desk.made() == LEFT
    kind, part = "q8_0", desk.out / LEFT[1]
    if change == "type":
        kind = "f16"
    elif change == "weights":
        desk.server.salt = "another commit"
        other = make_repository(tmp_path / "other", PARALLEL, "safetensors-sharded", n_shards=3)
        desk.server.repositories[REPOSITORY] = {"main": other}
    elif change == "part":
        part.write_bytes(part.read_bytes()[:-1])
    elif change == "header":
        part.write_bytes(b"GGUX" + part.read_bytes()[4:])
    elif change == "journal":
        (desk.out / LEFT[0]).write_text('{"fingerprint": ')
    elif change == "notes":
        edit_json(desk.out / LEFT[0], lambda journal: journal["notes"].popitem() and None)
    else:  # another quantizer may write other bytes
        monkeypatch.setattr(pipeline, "version", lambda name: "9.9")
    report = desk.convert(kind=kind)
    assert any("started over" in note for note in report.notes)
    desk.convert(kind=kind, output=desk.out / "x.gguf")
    assert desk.target.read_bytes() == (desk.out / "x.gguf").read_bytes()
    assert desk.made() == ["m.gguf", "x.gguf"]


def test_a_full_disk_keeps_what_came(
    desk: Desk, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(desk, int(1.2 * source_bytes(desk)))
    kept = (desk.made(), desk.cached())
    real = os.statvfs

    def full(path: Any) -> Any:
        values = list(real(path))
        values[4] = 0  # f_bavail
        return os.statvfs_result(values)

    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", full)
        with pytest.raises(OutputError, match="too full"):
            desk.convert()
    assert (desk.made(), desk.cached()) == kept
    desk.server.requests.clear()
    desk.convert()
    assert desk.target.read_bytes() == expected
    assert FIRST not in desk.shard_downloads()


def test_a_local_conversion_does_not_continue_it(desk: Desk) -> None:
    from infer_os.convert.pipeline import convert
    from infer_os.convert.settings import ConvertSettings

    interrupt(desk, int(1.2 * source_bytes(desk)))
    report = convert(ConvertSettings(PARALLEL, desk.target, "q8_0"))
    assert not any("resume" in note for note in report.notes)
    assert desk.made() == ["m.gguf"]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"fingerprint": "f", "done": [1], "notes": {}}', "{" * 100_000]
)
def test_a_journal_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    journal = ShardJournal(tmp_path / "m.gguf")
    journal.path.write_text(text)
    assert journal.load("f") is None
    assert journal.done == frozenset()


# ---- kill -9

SCRIPT = """
import os, random, sys
from infer_os.convert import gguf_writer, hub_checkpoint, pipeline, shard_journal
{patch}
from infer_os.cli import main
main()
"""

#: Moments at which the process ends at once, as it would by kill -9.
MOMENTS = {
    "in the middle of writing": (
        "real, calls = pipeline.GgufOutput.write, []\n"
        "def write(*a):\n    calls.append(1)\n    real(*a) if len(calls) < 9 else os._exit(9)\n"
        "pipeline.GgufOutput.write = write"
    ),
    "between a shard and its record": "shard_journal.ShardJournal.record = lambda *a: os._exit(9)",
    "in the middle of a record": (
        "real = os.replace\n"
        "os.replace = lambda *a: os._exit(9) if str(a[0]).endswith('.new') else real(*a)"
    ),
    "between a record and its shard's end": (
        "hub_checkpoint.HubCheckpoint.drop = lambda *a: os._exit(9)"
    ),
    "before the output has its name": "gguf_writer.os.replace = lambda *a: os._exit(9)",
    "after the output has its name": (
        "real = gguf_writer.take_name\ngguf_writer.take_name = lambda *a: (real(*a), os._exit(9))"
    ),
}


def start(desk: Desk, place: Path, patch: str = "") -> subprocess.Popen[str]:
    command = ["convert", REPOSITORY, "-o", str(desk.target), "--type", "q8_0", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(patch=patch), *command],
        env=client_environment(desk, place), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def check_after_kill(desk: Desk, expected: bytes) -> None:
    """No file claims to be complete that is not; a rerun ends as if nothing had been."""
    assert set(desk.made()) <= {"m.gguf", ".m.gguf.journal.new", *LEFT}
    if desk.target.exists():
        assert desk.target.read_bytes() == expected
    for path in desk.cache.rglob("*.safetensors"):
        original = desk.server.repositories[REPOSITORY]["main"] / path.name
        assert path.read_bytes() == original.read_bytes()
    desk.server.faults.delay = 0
    desk.watch_shards()
    desk.convert(force=True)
    assert desk.target.read_bytes() == expected
    assert (desk.made(), desk.cached()) == (["m.gguf"], [])
    assert desk.most_shards[0] <= 1  # nor what was killed before it could be dropped


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_critical_moment(
    desk: Desk, expected: bytes, tmp_path: Path, moment: str
) -> None:
    killed = start(desk, tmp_path, MOMENTS[moment])
    out, err = killed.communicate(timeout=60)
    assert killed.returncode == 9, out + err
    assert desk.target.exists() == (moment == "after the output has its name")
    check_after_kill(desk, expected)


@pytest.mark.parametrize("number", range(10))
def test_kill_9_at_a_random_moment(
    desk: Desk, expected: bytes, tmp_path: Path, number: int
) -> None:
    chance = random.Random(number)
    # a tenth of the range each, so that the ten cover all of it: headers, shards, the last one
    after = int((number + chance.random()) / 10 * 1.4 * source_bytes(desk))
    sent, reached = 0, threading.Event()

    def count(n_bytes: int) -> None:
        nonlocal sent
        sent += n_bytes
        if sent >= after:
            reached.set()

    desk.server.on_bytes = count
    desk.server.faults.delay = 0.001
    process = start(desk, tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not reached.wait(0.005) and process.poll() is None:
            assert time.monotonic() < deadline
        time.sleep(chance.random() * 0.03)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.communicate()
    desk.server.on_bytes = lambda n_bytes: None
    check_after_kill(desk, expected)


def test_ctrl_c_says_how_to_continue(desk: Desk, expected: bytes, tmp_path: Path) -> None:
    desk.server.faults.delay = 0.01
    process = start(desk, tmp_path)
    while len(desk.shard_downloads()) < 1 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "interrupted; the same command continues where it stopped\n"
    assert not desk.target.exists()
    assert any(name.endswith(".incomplete") for name in desk.cached())
    check_after_kill(desk, expected)


def test_a_lost_network_on_the_command_line(desk: Desk, tmp_path: Path) -> None:
    desk.server.faults.status, desk.server.faults.failures = 500, 10_000
    patch = "from infer_os.convert import hub; hub.RETRY_WAITS = (0, 0)"
    process = start(desk, tmp_path, patch)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: someone/tiny: model-00001")
    assert err.count("\n") == 1


# ---- bodies without an end


@pytest.mark.parametrize("part", ["/config.json", "/tokenizer.json", "/cdn/", "/resolve/"])
def test_a_body_without_an_end_is_left(desk: Desk, expected: bytes, part: str) -> None:
    """Small files, shards, and (of these) redirections."""
    desk.server.faults.endless = part
    desk.convert()
    assert desk.target.read_bytes() == expected
    # what the sockets between the two hold was sent, too
    assert desk.server.endless_bytes < 1 << 28


def test_a_list_of_files_without_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LARGEST_LISTING", 1 << 20)
    desk.server.faults.endless = "/api/"
    with pytest.raises(DownloadError, match=r"as the hub does: .* has over 1048576 bytes"):
        desk.convert()
    assert desk.server.endless_bytes < 1 << 28


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_without_an_end(desk: Desk, status: int) -> None:
    desk.server.faults.status, desk.server.faults.failures = status, 99
    desk.server.faults.only = "config.json"
    desk.server.faults.endless = "config.json"
    with pytest.raises((SourceError, DownloadError), match=f"{REPOSITORY}.*{status}"):
        desk.convert()
    assert desk.server.endless_bytes < 1 << 28


def test_redirections_without_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.server.faults.loop = True
    with pytest.raises(SourceError, match="redirected again and again"):
        desk.convert()


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"{}", b"[" * 100_000, b'{"id": ' + b"1" * 5000 + b"}", b'{"id": "a/b", "sha": 5}',
     b'{"id": "../../x", "sha": "' + b"a" * 40 + b'"}', b"\xff",
     b'{"id": "a/b", "siblings": [{"rfilename": 5, "size": 1}]}', b'{"id": "a/b", "siblings": 5}'],
)  # fmt: skip
def test_a_list_of_files_that_is_none(desk: Desk, answer: bytes) -> None:
    desk.server.faults.listing = answer
    with pytest.raises(DownloadError, match=r"does not answer as the hub does|names no commit"):
        desk.convert()
