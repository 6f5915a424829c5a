"""Every fuzzing target over its seeds, whole, cut short and mutated; no fuzzer is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS, edited

_MUTANTS = 60


def mutants(seed: bytes, random: np.random.Generator) -> list[bytes]:
    """A seed with bytes changed, cut out, or repeated, mostly near its beginning."""
    found = []
    for number in range(_MUTANTS):
        data = bytearray(seed)
        for _ in range(int(random.integers(1, 5))):
            if not data:
                break
            reach = len(data) if number % 2 else min(len(data), 400)
            at = int(random.integers(reach))
            kind = int(random.integers(4))
            if kind == 0:
                data[at] = int(random.integers(256))
            elif kind == 1:
                data[at : at + 8] = random.integers(0, 256, 8, np.uint8).tobytes()
            elif kind == 2:
                del data[at : at + int(random.integers(1, 40))]
            else:
                data[at:at] = data[at : at + 40]
        found.append(bytes(data))
    return found


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seeds_and_what_is_near_them(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    random = np.random.default_rng(5)
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        target.read(seed, tmp_path) if name in _SOUND else target.run(seed, tmp_path)
        for data in (b"", seed[: len(seed) // 2], *mutants(seed, random)):
            target.run(data, tmp_path)


#: Targets whose seeds are good files: a seed that is refused would fuzz nothing but the refusal.
_SOUND = {
    "gguf", "imatrix", "adapter", "statistics", "safetensors", "torch", "ggml", "records", "table",
    "journal", "state",
}  # fmt: skip


def test_edits_change_a_document_and_keep_the_original() -> None:
    document = {"a": [1, {"b": 2}], "c": "d"}
    random = np.random.default_rng(3)
    made = {
        str(edited(document, random.integers(0, 256, 20, np.uint8).tobytes())) for _ in range(50)
    }
    assert len(made) > 40
    assert document == {"a": [1, {"b": 2}], "c": "d"}
