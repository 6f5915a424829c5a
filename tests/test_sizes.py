"""SIZE: what is read, and that what is printed means the same."""

from __future__ import annotations

import pytest

from infer_os.commands.typed_numbers import size_option
from infer_os.runtime.errors import SettingsError
from infer_os.sizes import count_text, read_number, read_size, read_whole, size_text

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("600M", 600_000_000), ("12G", 12_000_000_000), ("1.5g", 1_500_000_000), ("7", 7),
     ("2k", 2000), ("1T", 10**12), ("3MiB", 3 * MIB), ("3Mi", 3 * MIB), ("3MB", 3_000_000),
     ("12GiB", 12 << 30), (" 4K ", 4000), ("94.4 MB", 94_400_000), ("5 B", 5), ("1.5gib", 3 << 29)],
)  # fmt: skip
def test_sizes(text: str, n_bytes: int) -> None:
    assert read_size(text) == size_option("--kv-budget", text) == n_bytes


@pytest.mark.parametrize(
    "n_bytes", [1, 999, 12_345, 94_412_345, 94_400_000, 7_546_522_272, 999_950_001, 10**12]
)
def test_a_printed_size_can_be_given_back(n_bytes: int) -> None:
    """What is needed is printed rounded up: as an option it is enough, and hardly more."""
    text = size_text(n_bytes, up=True)
    assert n_bytes <= (read_size(text) or 0) <= 1.02 * n_bytes, text
    assert n_bytes <= (read_size(text.replace(" ", "")) or 0)


@pytest.mark.parametrize(
    "text", ["M", "0", "0.1", "-1M", "1X", "1 2", "1e9", "1" * 40, "1_0M", "٣M", "nan"]
)
def test_bad_sizes(text: str) -> None:
    assert read_size(text) is None
    with pytest.raises(SettingsError, match=r"--kv-budget .*expected a size such as 600M"):
        size_option("--kv-budget", text)


def test_a_size_beyond_every_memory_is_shown_as_it_was_typed() -> None:
    with pytest.raises(SettingsError, match="--memory 99999999T: expected a size such as 600M"):
        size_option("--memory", "99999999T")


def test_no_size() -> None:
    assert read_size("") is None
    assert size_option("--memory", "") == 0


@pytest.mark.parametrize(
    ("n_bytes", "text", "up"),
    [(0, "0 B", "0 B"), (999, "999 B", "999 B"), (1540, "1.5 kB", "1.6 kB"),
     (14_720_000, "14.7 MB", "14.8 MB"), (7_573_000_000, "7.57 GB", "7.58 GB")],
)  # fmt: skip
def test_printed_sizes(n_bytes: int, text: str, up: str) -> None:
    assert (size_text(n_bytes), size_text(n_bytes, up=True)) == (text, up)


def test_printed_counts() -> None:
    assert [count_text(n) for n in (5_800_000, 124_439_808, 6_050_882_784)] == [
        "5.80 M", "124 M", "6.05 B",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-1", -1), ("+7", 7), ("007", 7)])
def test_whole_numbers(text: str, value: int) -> None:
    assert read_whole(text) == read_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("-.5", -0.5), ("2.", 2.0), ("1e-3", 0.001), ("3E+2", 300.0)]
)
def test_numbers(text: str, value: float) -> None:
    assert read_number(text) == value
    with pytest.raises(ValueError, match="is not a whole number"):
        read_whole(text)


#: What Python's int() or float() take, and nobody else does; and what neither takes.
ODD = ("1_000", " 5", "5 ", "5\n", "٣", "nan", "inf", "-Infinity", "1e999", "", "-", ".", "e5",
       "0x10", "5" * 5000 + ".")  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_number(text: str) -> None:
    for read in (read_whole, read_number):
        with pytest.raises(ValueError, match="number"):
            read(text)
