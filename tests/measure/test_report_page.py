"""Plots and the page are made from rows alone, and only from rows that exist."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from infer_os.measure import plots
from infer_os.measure.plots import all_plots, png, svg
from infer_os.measure.report_page import check_outputs, report_page, write_report, write_rows
from infer_os.measure.rows import Place, Row
from infer_os.measure.tables import all_tables, number, spread
from infer_os.runtime.errors import BenchError

PLACE = Place("infer-os bench <x>", "abc123", (("infer-os", "0.1.0"),), "a CPU & more", 2)


def row(metric: str, median: float, **labels: object) -> Row:
    low, high = median - abs(median) * 0.1, median + abs(median) * 0.2
    return Row(metric, "u", median, low, high, 3, "m.gguf", labels)  # type: ignore[arg-type]


DECODE = [
    row("decode", 100 - depth / 100 - 10 * i, kv=kv, depth=depth)
    for i, kv in enumerate(["f16", "f16:512,q8_0:2048"])
    for depth in (0, 512, 1024)
]
BATCH = [row("batch_decode", 10.0 * n, sequences=n) for n in (1, 2, 4)]
TECHNIQUES = [
    row("technique_ratio", 1.5, technique="all"), row("technique_saved", -0.1, technique="all"),
    row("technique_kv_saved", 0.7, technique="all"),
]  # fmt: skip
QUALITY = [
    made
    for kind, bits, kl in (("q8_0", 8.5, 1e-4), ("q4_0", 4.5, 1e-2))
    for made in (row("perplexity", 40.0, type=kind, kv="f16", tokens=100, standard_error=1.0),
                 row("kl", kl, type=kind, kv="f16"),
                 row("bits_per_weight", bits, type=kind))
]  # fmt: skip
GROWTH = [
    row("kv_memory", 1e6 if n < 512 else 6e5, kv="f16:512,q8_0:2048", tokens=n,
        stage="f16" if n < 512 else "q8_0")
    for n in range(64, 1024, 64)
]  # fmt: skip
ALL = [*DECODE, *BATCH, *TECHNIQUES, *QUALITY, *GROWTH]


@pytest.mark.parametrize(
    ("rows", "titles"),
    [
        ([], []),
        (DECODE[:1], []),
        (BATCH[:1], []),
        (DECODE, ["Decode speed over depth"]),
        (BATCH, ["Throughput over sequences decoded together"]),
        (TECHNIQUES[:1], ["Techniques: times as fast as the baseline"]),
        (TECHNIQUES[1:2], ["Techniques: memory saved against the baseline"]),
        (QUALITY, ["Quality over size"]),
        (GROWTH, ["KV cache over tokens, with its stages"]),
    ],
)
def test_a_plot_for_what_there_is(rows: list[Row], titles: list[str]) -> None:
    assert [plot.title for plot in all_plots(rows)] == titles


def test_axes_have_units_and_lines_have_the_values() -> None:
    found = {plot.title: plot.figure.axes[0] for plot in all_plots(ALL)}
    assert len(found) == 6
    for axes in found.values():
        assert axes.get_xlabel()
    depth = found["Decode speed over depth"]
    assert depth.get_ylabel() == "decode, tokens/s"
    lines = {line.get_label(): line for line in depth.lines}
    assert list(lines["f16"].get_ydata()) == [r.median for r in DECODE[:3]]
    assert found["KV cache over tokens, with its stages"].texts[0].get_text() == "to q8_0"
    assert "nats" in found["Quality over size"].get_ylabel()
    bars = found["Techniques: times as fast as the baseline"].patches
    assert [bar.get_width() for bar in bars] == [1.5]


def test_no_text_covers_another() -> None:
    # what types of a model come to: several of nearly the same size and quality
    types = [
        ("iq3_s", 3.92, 6.2e-3), ("q3_k_m", 4.5, 2.3e-3), ("q4_0", 4.78, 2.1e-3),
        ("iq4_nl", 4.78, 1.5e-3), ("q4_k_s", 4.87, 9.7e-4), ("q4_k_m", 5.27, 7.8e-4),
        ("q5_0", 5.69, 6.8e-4), ("q5_k_m", 6.1, 4.2e-4), ("q6_k", 6.65, 3.1e-4),
        ("q8_0", 8.58, 5.4e-5), ("f16", 16.06, 8e-8),
    ]  # fmt: skip
    quality = [
        made for kind, bits, kl in types
        for made in (row("kl", kl, type=kind, kv="f16"), row("bits_per_weight", bits, type=kind))
    ]  # fmt: skip
    for plot in all_plots([*quality, *TECHNIQUES]):
        figure, axes = plot.figure, plot.figure.axes[0]
        figure.draw_without_rendering()
        texts = list(axes.texts)
        assert texts
        texts += [axes._left_title, *(text for one in figure.legends for text in one.get_texts())]
        boxes = [text.get_window_extent() for text in texts]
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i]), f"{plot.title}: {texts[i].get_text()}"
        assert all(figure.bbox.containsx(box.x1) for box in boxes)


def test_pictures_are_complete() -> None:
    plot = all_plots(DECODE)[0]
    assert ET.fromstring(svg(plot)).tag.endswith("svg")
    assert png(plot).startswith(b"\x89PNG")


def test_the_page_needs_no_other_file_and_says_what_was_run(tmp_path: Path) -> None:
    page = write_report(tmp_path, ALL, PLACE, ["left out: <energy>"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html"]
    text = page.read_text()
    # every picture is inside, and nothing is fetched
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 6
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    for part in (
        "infer-os bench &lt;x&gt;",
        "abc123",
        "a CPU &amp; more",
        "left out: &lt;energy&gt;",
    ):
        assert part in text
    assert "<td>100 (90 to 120)</td>" in text
    for table in all_tables(ALL):
        assert f"<h2>{table.title}</h2>" in text


def test_numbers_show_what_counts() -> None:
    assert [number(n) for n in (1234.5, 12.345, 0.0012345)] == ["1234", "12.3", "0.00123"]
    assert spread(None) == ""
    assert spread(Row("x", "s", 2, 1, 3, 1, "m")) == "2"


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r'pip install "infer-os\[plot\]"'):
        report_page(ALL, PLACE, [])
    with pytest.raises(BenchError, match="matplotlib"):
        check_outputs(None, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    check_outputs(tmp_path / "rows", None)  # rows need none


def test_matplotlib_is_not_loaded_before_it_is_needed() -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", "import sys\nimport infer_os.measure.report_page\n"
         "import infer_os.measure.bench\nprint('matplotlib' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"--report .*file.*cannot be written"):
        check_outputs(None, tmp_path / "file")
    with pytest.raises(BenchError, match=r"--report .*cannot be written"):
        check_outputs(None, tmp_path / "file" / "deeper")
    with pytest.raises(BenchError, match=r"--rows .*cannot be written"):
        check_outputs(tmp_path / "no" / "rows", None)
    with pytest.raises(BenchError, match=r"--rows .*cannot be written"):
        write_rows(tmp_path, ALL, PLACE)
    check_outputs(tmp_path / "rows", tmp_path / "new" / "deep")
    assert not (tmp_path / "rows").exists()
    assert (tmp_path / "new" / "deep").is_dir()
    with pytest.raises(BenchError, match="cannot be written"):
        write_report(tmp_path / "gone", ALL, PLACE, [])


def test_rows_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    write_rows(path, BATCH, PLACE)
    write_rows(path, BATCH, PLACE)
    assert path.read_text().count("\n") == 6
