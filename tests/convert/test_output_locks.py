"""Locks that refuse, and locks that wait for their turn."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from infer_os.convert.errors import OutputError
from infer_os.convert.output_locks import locked, locked_in_turn


def never() -> None:
    pytest.fail("waited")


def test_a_free_lock_is_taken_at_once_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / ".lock"
    with (
        locked_in_turn(path, never),
        pytest.raises(OutputError, match="taken"),
        locked(path, "taken"),
    ):
        pass
    with locked(path, "free again"):
        pass


@pytest.mark.parametrize("removed", [False, True], ids=["kept", "removed by its holder"])
def test_the_second_waits_for_the_first(tmp_path: Path, removed: bool) -> None:
    path = tmp_path / "place" / ".lock"
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with locked_in_turn(path, waiting.set):
            # whatever became of the file, the lock is on the one that is there now
            try:
                with locked(path, "held"):
                    order.append("second, without a lock")
            except OutputError as error:
                order.append(f"second, {error}")

    with locked_in_turn(path, never):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        time.sleep(0.2)  # who does not truly wait comes in now
        order.append("first")
        if removed:
            path.unlink()
            path.parent.rmdir()
    thread.join(10)
    assert not thread.is_alive()
    assert order == ["first", "second, held"]


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be made: Not a directory; INFER_OS_CACHE"),
        locked_in_turn(tmp_path / "file" / "x" / ".lock", never),
    ):
        pass
