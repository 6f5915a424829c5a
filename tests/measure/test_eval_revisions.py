"""``eval`` of a model at several steps of its training: one table, each step its own weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import PARALLEL, copy_checkpoint, read_tensors, write_tensors
from hub_fixtures import environment
from in_process import runner

PYTHIA = "EleutherAI/pythia-tiny"


def test_steps_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = runner(monkeypatch, capfdbinary)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 9)
    late, early = PARALLEL, copy_checkpoint(PARALLEL, tmp_path / "early")
    tensors = read_tensors(early)
    tensors["embed_out.weight"] = (tensors["embed_out.weight"] * 0).astype(np.float16)
    write_tensors(early, tensors)
    options = (
        "--types", "q8_0", "--text", text, "--windows", 1, "--window", 32, "--threads", 1, "--json",
    )  # fmt: skip
    with environment(tmp_path, monkeypatch) as desk:
        desk.server.repositories = {PYTHIA: {"step3000": early, "main": late}}
        found = run("eval", f"{PYTHIA}@step3000", PYTHIA, *options)
        assert found.code == 0, found.err
        rows = json.loads(found.out)["rows"]
        seen = {
            row["labels"]["type"]: row["median"] for row in rows if row["metric"] == "perplexity"
        }
        assert list(seen) == ["pythia-tiny@step3000 q8_0", "pythia-tiny@main q8_0"]
        first, last = seen.values()
        # a head of zeros finds every token as likely as any other
        assert first == pytest.approx(len(tensors["embed_out.weight"]), rel=1e-3)
        assert last != pytest.approx(first, rel=0.1)
        twice = run("eval", PYTHIA, f"{PYTHIA}@main", *options).user_error
        assert "named twice" in twice
        mixed = run("eval", PYTHIA, PARALLEL, *options).user_error
        assert "evaluate a folder alone" in mixed
