"""The texts of the larger test bed: prose and manuals found in Debian packages, cut into three.

In: package names, fetched with ``apt-get download`` (nothing is installed); all of these texts may
be passed on (public domain, PSF, PostgreSQL, GPL, GFDL, Artistic licence). Out, in a work folder:
train.txt, and three texts that are no part of it: calibrate.txt, choose.txt and report.txt, of the
same kinds, every document whole; sources.json says what came from where.
"""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from train_data import EOT, SOURCES, book_chapters, fetch

HELD_OUT = ("calibrate", "choose", "report")
PERIOD = 60  # of so many documents of a package, one goes to each held-out text
SMALLEST = 400  # characters: what is shorter is an index or a pointer to another page
LARGEST = 200_000  # characters of one document: the rest is dropped


@dataclass(frozen=True)
class Library:
    """The documents of one package: ``glob`` finds them, ``without`` leaves some out."""

    package: str
    glob: str
    licence: str
    without: str = r"$^"


LIBRARIES = (
    Library("anarchism", "usr/share/doc/anarchism/html/*.html", "GPL or GFDL"),
    Library(
        "linux-doc-6.1",
        "usr/share/doc/linux-doc-6.1/html/_sources/**/*.txt",
        "GPL-2.0",
        r"/translations/|/features/|/devicetree/",
    ),
    Library("python3.11-doc", "usr/share/doc/python3.11/html/_sources/**/*.txt", "PSF-2.0"),
    Library("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html/*.html", "PostgreSQL"),
    Library("perl-doc", "usr/share/perl/**/*.pod", "Artistic or GPL", r"/perl(de|cn|jp|ko|tw)\."),
    Library("git-doc", "usr/share/doc/git-doc/**/*.txt", "GPL-2.0"),
)


class _Prose(html.parser.HTMLParser):
    """The text of a page without its scripts, head and navigation; blocks end a paragraph."""

    HIDDEN = frozenset({"script", "style", "head", "nav"})
    BLOCKS = frozenset({"p", "div", "li", "tr", "h1", "h2", "h3", "h4", "pre", "br", "dt", "dd"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.parts.append("\n\n" if tag != "br" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self.HIDDEN and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _prose(page: str) -> str:
    parser = _Prose()
    parser.feed(page)
    blocks = re.split(r"\n\s*\n", "".join(parser.parts))
    return "\n\n".join(block for block in (" ".join(b.split()) for b in blocks) if block)


def _documents(library: Library, root: Path) -> Iterator[str]:
    """The texts of a package in the order of their paths, without copies of one another."""
    seen: set[str] = set()
    for path in sorted(root.glob(library.glob)):
        if re.search(library.without, "/" + path.relative_to(root).as_posix()):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        text = _prose(text) if path.suffix == ".html" else text
        text = re.sub(r"[ \t]+\n", "\n", text)
        text = re.sub(r"\n{3,}", "\n\n", text).strip()[:LARGEST] + "\n"
        if len(text) >= SMALLEST and text not in seen:
            seen.add(text)
            yield text


def prepare_library(work: Path) -> None:
    """Write train.txt, the three held-out texts and sources.json, unless they are there."""
    if (work / "sources.json").exists():
        return
    texts: dict[str, list[str]] = {name: [] for name in ("train", *HELD_OUT)}
    report: list[dict[str, object]] = []

    def take(documents: list[str], entry: dict[str, object]) -> None:
        step = PERIOD // len(HELD_OUT)
        for number, document in enumerate(documents):
            held, rest = divmod(number % PERIOD, step)
            texts[HELD_OUT[held] if rest == step - 1 else "train"].append(document)
        size = sum(len(document.encode()) for document in documents)
        report.append({**entry, "documents": len(documents), "bytes": size})
        print(report[-1], flush=True)

    for source in SOURCES:
        root, version = fetch(source.package, work)
        entry: dict[str, object] = {"package": source.package, "version": version}
        entry |= {"title": source.title, "licence": "public domain"}
        take(book_chapters(source, root), entry)
    for library in LIBRARIES:
        root, version = fetch(library.package, work)
        take(list(_documents(library, root)), {**asdict(library), "version": version})
    for name, documents in texts.items():
        (work / f"{name}.txt").write_text(EOT.join(documents), encoding="utf-8")
    (work / "sources.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
