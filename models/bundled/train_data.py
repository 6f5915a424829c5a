"""The texts of the bundled models: found in Debian packages, cut into chapters, made tokens.

In: package names, fetched with ``apt-get download`` (nothing is installed). Out, in a work folder:
train.txt, held-out.txt, sources.json and tokenizer.json; and their tokens.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

EOT = "<|endoftext|>"
VOCAB = 2048


@dataclass(frozen=True)
class Source:
    """One book: where it is found and how its chapters are recognised."""

    key: str
    title: str
    author: str
    year: int
    package: str
    member: str
    heading: str
    held_out: int


AUSTEN_PACKAGE = "r-cran-janeaustenr"
AUSTEN_MEMBER = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
CHAPTER = r"^(?:CHAPTER|Chapter) (?:[IVXL]+|\d+)\.?$"


def _austen(key: str, title: str, year: int, held: int = 2) -> Source:
    return Source(key, title, "Jane Austen", year, AUSTEN_PACKAGE, AUSTEN_MEMBER, CHAPTER, held)


SOURCES = (
    _austen("SENSE AND SENSIBILITY", "Sense and Sensibility", 1811),
    _austen("PRIDE AND PREJUDICE", "Pride and Prejudice", 1813),
    _austen("MANSFIELD PARK", "Mansfield Park", 1814, held=1),
    _austen("EMMA", "Emma", 1815),
    _austen("NORTHANGER ABBEY", "Northanger Abbey", 1817),
    _austen("PERSUASION", "Persuasion", 1817),
    Source(
        key="pg1661",
        title="The Adventures of Sherlock Holmes",
        author="Arthur Conan Doyle",
        year=1892,
        package="golang-github-pierrec-lz4-dev",
        member="usr/share/gocode/src/github.com/pierrec/lz4/testdata/pg1661.txt",
        heading=r"^(?:ADVENTURE )?[IVX]+\. [A-Z][A-Z' -]+$",
        held_out=1,
    ),
)


# ---------------------------------------------------------------------------- texts


def fetch(package: str, work: Path) -> tuple[Path, str]:
    """Download and unpack one Debian package; returns its folder and its version."""
    folder = work / "packages" / package
    if not list(folder.glob("*.deb")):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        subprocess.run(command, cwd=folder, check=True)
    deb = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "root")], check=True)
    field = ["dpkg-deb", "-f", str(deb), "Version"]
    version = subprocess.run(field, check=True, capture_output=True, text=True).stdout.strip()
    return folder / "root", version


def _r_strings(blob: bytes) -> list[str]:
    """The strings of one character vector in R's XDR serialization (version 2 or 3)."""
    at = 14
    if struct.unpack_from(">i", blob, 2)[0] == 3:
        at += 4 + struct.unpack_from(">i", blob, at)[0]  # version 3 names its encoding first
    flags, count = struct.unpack_from(">ii", blob, at)
    if flags & 0xFF != 16:
        return []
    at += 8
    lines: list[str] = []
    for _ in range(count):
        size = struct.unpack_from(">i", blob, at + 4)[0]
        at += 8
        lines.append(blob[at : at + max(size, 0)].decode("utf-8"))
        at += max(size, 0)
    return lines


def _r_vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: records of a size and a zlib stream."""
    rest = database
    while len(rest) > 4:
        unpacker = zlib.decompressobj()
        blob = unpacker.decompress(rest[4:])
        yield _r_strings(blob)
        rest = unpacker.unused_data


def _read_lines(source: Source, root: Path) -> list[str]:
    """The raw lines of one book."""
    raw = (root / source.member).read_bytes()
    if source.member.endswith(".rdb"):
        return next(v for v in _r_vectors(raw) if v and v[0].strip().upper() == source.key)
    return raw.decode("utf-8-sig").splitlines()


def _paragraphs(lines: list[str]) -> str:
    """Unwrap hard-wrapped lines: one line per paragraph, with blank lines between them."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].extend(line.split())
        elif blocks[-1]:
            blocks.append([])
    text = "\n\n".join(" ".join(words) for words in blocks if words)
    return text.replace("_", "")


def _chapters(source: Source, lines: list[str]) -> list[str]:
    """Cut one book at its chapter headings; anything before the first one is dropped."""
    starts = [i for i, line in enumerate(lines) if re.match(source.heading, line.strip())]
    ends = [*starts[1:], len(lines)]
    closing = re.compile(r"^(?:(?:THE END|FINIS|Finis)\.?$|A NOTE ON THE TEXT|End of the Project)")
    chapters: list[str] = []
    for start, end in zip(starts, ends, strict=True):
        body = [s for s in lines[start:end] if not re.match(r"^\s*VOLUME [IVX]+\s*$", s)]
        stop = next((i for i, s in enumerate(body) if closing.match(s.strip())), len(body))
        chapters.append(_paragraphs(body[:stop]) + "\n")
    return chapters


def book_chapters(source: Source, root: Path) -> list[str]:
    """The chapters of one book in the unpacked package ``root``."""
    return _chapters(source, _read_lines(source, root))


def prepare(work: Path) -> None:
    """Write train.txt, held-out.txt and sources.json into the work folder."""
    train: list[str] = []
    held: list[str] = []
    report: list[dict[str, Any]] = []
    for source in SOURCES:
        root, version = fetch(source.package, work)
        chapters = book_chapters(source, root)
        train += chapters[: -source.held_out]
        held += chapters[-source.held_out :]
        report.append(
            {
                "title": source.title,
                "author": source.author,
                "year": source.year,
                "package": source.package,
                "version": version,
                "member": source.member,
                "chapters": len(chapters),
                "held_out": source.held_out,
                "bytes": sum(len(c.encode()) for c in chapters),
                "held_bytes": sum(len(c.encode()) for c in chapters[-source.held_out :]),
            }
        )
        print(source.title, len(chapters), "chapters", report[-1]["bytes"], "bytes", flush=True)
    (work / "train.txt").write_text(EOT.join(train), encoding="utf-8")
    (work / "held-out.txt").write_text(EOT.join(held), encoding="utf-8")
    (work / "sources.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


# ------------------------------------------------------------------------ tokenizer


def train_tokenizer(work: Path, vocab: int = VOCAB) -> None:
    """Train the byte-level BPE on the training text; writes tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = (work / "train.txt").read_text(encoding="utf-8").split(EOT)
    tokenizer.train_from_iterator(documents, trainer)
    data = json.loads(tokenizer.to_str())
    # Readers older than tokenizers 0.20 know merges as "a b" only; newer ones take both forms.
    merges = data["model"]["merges"]
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    text = json.dumps(data, ensure_ascii=False, indent=1)
    (work / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def encode(work: Path, name: str) -> np.ndarray:
    """The token ids of a text file, one <|endoftext|> before every document."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    ids: list[int] = []
    for document in (work / name).read_text(encoding="utf-8").split(EOT):
        ids.append(0)
        ids += tokenizer.encode(document).ids
    return np.array(ids, dtype=np.int64)  # (tokens,)
