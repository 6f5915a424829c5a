"""Write rows: as JSON lines, and as one self-contained HTML page with plots and tables."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from infer_os.files import append, write_file
from infer_os.runtime.errors import BenchError

from .rows import Place, Row, json_lines

_PAGE = "index.html"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid #e4e8ec; }
th { color: #6b7785; font-weight: 500; } .text { text-align: left; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: #6b7785; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def check_outputs(rows: Path | None, report: Path | None) -> None:
    """Check, before anything is measured, that both can be written.

    The report's folder is made; a file of rows is opened, to append.

    Raises:
        BenchError: one of them cannot be written, or matplotlib is not installed.
    """
    if rows is not None:
        try:
            existed = rows.exists()
            with rows.open("a"):
                pass
            if not existed:
                rows.unlink()
        except OSError as error:
            raise BenchError(f"--rows {rows}: cannot be written: {error.strerror}") from error
    if report is None:
        return
    from .plots import check_matplotlib

    check_matplotlib()
    try:
        report.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=report):
            pass
    except OSError as error:
        raise BenchError(f"--report {report}: cannot be written: {error.strerror}") from error


def write_rows(path: Path, rows: Sequence[Row], place: Place) -> None:
    """Append rows to a file of JSON lines, all or none.

    Raises:
        BenchError: it cannot be written.
    """
    try:
        append(path, json_lines(rows, place).encode())
    except OSError as error:
        raise BenchError(f"--rows {path}: cannot be written: {error.strerror}") from error


def write_report(folder: Path, rows: Sequence[Row], place: Place, notes: Sequence[str]) -> Path:
    """Write ``folder/index.html``, which needs no other file; returns its path.

    Raises:
        BenchError: it cannot be written, or matplotlib is not installed.
    """
    page = folder / _PAGE
    text = report_page(rows, place, notes)
    try:
        write_file(page, text.encode())
    except OSError as error:
        raise BenchError(f"--report {folder}: cannot be written: {error.strerror}") from error
    return page


def report_page(rows: Sequence[Row], place: Place, notes: Sequence[str]) -> str:
    """The page: what was run, plots, tables, reasons.

    Raises:
        BenchError: matplotlib is not installed.
    """
    from .plots import all_plots, svg
    from .tables import all_tables, reasons

    models = ", ".join(dict.fromkeys(row.model for row in rows))
    parts = [f"<h1>infer-os: {escape(models)}</h1>", _what(place, rows, notes)]
    for plot in all_plots(rows):
        data = base64.b64encode(svg(plot)).decode()
        source = f"data:image/svg+xml;base64,{data}"
        parts.append(f'<p><img alt="{escape(plot.title)}" src="{source}"></p>')
    found = reasons(rows)
    if found:
        items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(why)}</dd>" for name, why in found)
        parts.append(f"<h2>Claims that are not reached, and why</h2><dl>{items}</dl>")
    for table in all_tables(rows):
        parts.append(f"<h2>{escape(table.title)}</h2>")
        parts.append(_table(table.columns, table.rows, table.left))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>infer-os: {escape(models)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _what(place: Place, rows: Sequence[Row], notes: Sequence[str]) -> str:
    repeats = sorted({row.repeats for row in rows})
    facts = [
        ("command", place.command), ("commit", place.commit or "unknown"),
        *((name, text) for name, text in place.versions),
        ("CPU", place.cpu), ("threads", str(place.threads)),
        ("repeats", " and ".join(map(str, repeats))),
        ("figures", "medians, with first and third quartile in brackets"),
        *(("note", note) for note in notes),
    ]  # fmt: skip
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<dl>{items}</dl>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i < left else "" for i in range(len(cells))]
        pairs = zip(kinds, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in pairs) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{line(columns, "th")}{body}</table></div>'
