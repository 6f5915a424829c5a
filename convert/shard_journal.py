"""Remember which shards of a conversion are written, so that a later run continues.

The journal is a small JSON file next to the unfinished output. It is replaced as a whole, after the
output's bytes are on the disk, so that it never promises too much.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infer_os.files import new_file


def fingerprint(header: bytes, **facts: Any) -> str:
    """A hash over everything that decides the output's bytes.

    Args:
        header: the packed header: metadata with source, commit and version, vocabulary, tensors.
        facts: what else counts, as JSON values.
    """
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(header).digest() + text).hexdigest()


class ShardJournal:
    """The journal of one output."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.journal")
        self._fingerprint = ""
        self._done: list[str] = []

    @property
    def done(self) -> frozenset[str]:
        """Names of the shards whose tensors are in the output."""
        return frozenset(self._done)

    def load(self, fingerprint: str) -> Mapping[str, Any] | None:
        """The notes of the last :meth:`record` of a run with this fingerprint; None if none.

        Anything unreadable counts as none: the conversion then starts over.
        """
        self._fingerprint, self._done = fingerprint, []
        try:
            value = json.loads(self.path.read_bytes())
            done, notes = value["done"], value["notes"]
            known = value["fingerprint"] == fingerprint
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        well_formed = isinstance(done, list) and all(isinstance(name, str) for name in done)
        if not (known and well_formed and isinstance(notes, dict)):
            return None
        self._done = done
        return notes

    def forget(self) -> None:
        """Start over: nothing is done."""
        self._done = []
        self.remove()

    def record(self, shard: str, notes: Mapping[str, Any]) -> None:
        """Add a shard whose tensors are all on the disk."""
        self._done.append(shard)
        value = {"fingerprint": self._fingerprint, "done": self._done, "notes": dict(notes)}
        fresh = self.path.with_name(f"{self.path.name}.new")
        with new_file(self.path, part=fresh) as file:
            file.write(json.dumps(value).encode())

    def remove(self) -> None:
        """Remove the journal file."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}.new").unlink(missing_ok=True)
