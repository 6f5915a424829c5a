"""Rows: medians and quartiles, what was run, energy, lists of numbers and caches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from infer_os.measure.energy import EnergyMeter, find_zones
from infer_os.measure.rows import (
    Measurement,
    checkout_commit,
    json_lines,
    make_place,
    make_rows,
    select,
)
from infer_os.measure.settings import (
    DEPTHS,
    BenchSettings,
    check_batches,
    fitting_depths,
    parse_counts,
    split_specs,
)
from infer_os.runtime.errors import SettingsError


def test_values_of_the_same_labels_become_one_row() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    found = [Measurement("decode", "tokens/s", v, (("depth", 0),)) for v in values]
    found.insert(1, Measurement("decode", "tokens/s", 5.0, (("depth", 8),)))
    rows = make_rows(found, "m.gguf")
    assert [row.labels["depth"] for row in rows] == [0, 8]
    assert (rows[0].low, rows[0].median, rows[0].high) == tuple(
        np.quantile(values, [0.25, 0.5, 0.75])
    )
    assert (rows[0].repeats, rows[1].repeats) == (4, 1)
    assert select(rows, "decode", depth=8) == [rows[1]]


def test_a_line_says_what_was_run() -> None:
    place = make_place("infer-os bench x", "a CPU", 3)
    rows = make_rows([Measurement("load", "s", 0.5)], "m.gguf")
    record = json.loads(json_lines(rows, place))
    assert record["command"] == "infer-os bench x"
    assert (record["cpu"], record["threads"], record["repeats"]) == ("a CPU", 3, 1)
    assert {"infer-os", "llama.cpp", "llama-cpp-python"} <= set(record["versions"])
    assert record["commit"] == checkout_commit()
    assert (record["median"], record["unit"]) == (0.5, "s")


@pytest.mark.parametrize(("text", "expected"), [("", ()), ("4", (4,)), ("8,1, 4,8", (1, 4, 8))])
def test_counts(text: str, expected: tuple[int, ...]) -> None:
    assert parse_counts("--batch", text, 1, 8) == expected


@pytest.mark.parametrize("text", ["0", "9", "x", "1,", "-1", "1.5", "²"])
def test_wrong_counts(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--batch .*: .* is not a number from 1 to 8"):
        parse_counts("--batch", text, 1, 8)


def test_depths_end_where_the_context_does() -> None:
    settings = BenchSettings(n_prompt=100, n_decode=27)
    assert fitting_depths(settings, 4096) == (DEPTHS, ())
    depths, notes = fitting_depths(settings, 2048)
    assert depths == (0, 512, 1024, 1920)
    assert "1920" in notes[0]
    assert fitting_depths(settings, 128)[0] == (0,)
    with pytest.raises(SettingsError, match="no room for the 127"):
        fitting_depths(settings, 127)


def test_a_depth_that_does_not_fit_is_refused() -> None:
    settings = BenchSettings((0, 1000), n_prompt=100, n_decode=27)
    assert fitting_depths(settings, 1128)[0] == (0, 1000)
    with pytest.raises(SettingsError, match=r"--depths 1000: .* the deepest is 999"):
        fitting_depths(settings, 1127)


def test_sequences_must_fit_the_positions() -> None:
    check_batches((1, 32), 64, 64)
    check_batches((1, 32), 0, 10**6)
    with pytest.raises(SettingsError, match="--batch: sequences of 65 tokens"):
        check_batches((1, 32), 64, 65)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["f16"], ["f16"]),
        (["f16,q8_0,q4_0"], ["f16", "q8_0", "q4_0"]),
        (["f16:256,q8_0:512,q4_0"], ["f16:256,q8_0:512,q4_0"]),
        (["f16,f16:256,q8_0:512,q4_0"], ["f16", "f16:256,q8_0:512,q4_0"]),
        (["f16:256,q4_0:512,f16:128,q8_0:512"], ["f16:256,q4_0:512", "f16:128,q8_0:512"]),
        (["f16:256", "q4_0:512"], ["f16:256", "q4_0:512"]),
        (["f16,f16", "f16"], ["f16"]),
        ([], []),
    ],
)  # fmt: skip
def test_lists_of_caches(given: list[str], expected: list[str]) -> None:
    assert list(split_specs("--kv", tuple(given))) == expected


@pytest.mark.parametrize("text", ["q9", "f16,,q8_0", "f16:x", ""])
def test_wrong_lists_of_caches(text: str) -> None:
    with pytest.raises(SettingsError, match="--compare-kv"):
        split_specs("--compare-kv", (text,))


# ---- energy


def _zone(root: Path, name: str, counter: str) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(counter)
    (folder / "max_energy_range_uj").write_text("999999\n")
    return folder


def test_energy_is_that_of_the_packages(tmp_path: Path) -> None:
    one, two = _zone(tmp_path, "intel-rapl:0", "100\n"), _zone(tmp_path, "intel-rapl:1", "999000\n")
    _zone(tmp_path, "intel-rapl:0:0", "5\n")
    zones, missing = find_zones(tmp_path)
    assert (len(zones), missing) == (2, "")
    meter = EnergyMeter(zones)
    (one / "energy_uj").write_text("300100\n")
    (two / "energy_uj").write_text("1000\n")  # wrapped around
    assert meter.lap() == pytest.approx(0.3 + 0.002)
    assert meter.lap() == 0


def test_energy_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert find_zones(tmp_path) == (
        (), "this machine has no RAPL counters in /sys/class/powercap"
    )  # fmt: skip
    _zone(tmp_path, "intel-rapl:0", "no number")
    zones, missing = find_zones(tmp_path)
    assert zones == ()
    assert "intel-rapl:0/energy_uj cannot be read" in missing
