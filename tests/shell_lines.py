"""Shell lines in Markdown, as a reader would type them: found, filled in, made short.

Goes in: a page. Come out: :class:`ShellLine` records, in the page's order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from command_lines import joined, words

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|^((?:    [^\n]*\n)+)", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
#: What a code span in a sentence begins with if it is a command.
_PROGRAMS = ("infer-os ", "make ", "pip ", "python ", "ray ")
#: Behind the arguments of ``infer-os``: an operator of the shell, or a remark.
_REST = re.compile(r"\s+(?:[|>#].*)$")


@dataclass(frozen=True)
class Block:
    """A block of a page. ``language`` is "" for a fence without one."""

    language: str
    text: str


@dataclass(frozen=True)
class ShellLine:
    """A line to type; ``shown`` is what the page prints below it; a span is of a sentence."""

    text: str
    shown: str = ""
    is_span: bool = False


def blocks(markdown: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones: Python if they import, else of the shell."""
    for found in _BLOCK.finditer(markdown):
        if found[3] is None:
            yield Block(found[1], found[2])
        else:
            text = re.sub(r"^    ", "", found[3], flags=re.M)
            yield Block("python" if re.search(r"^(from|import) ", text, re.M) else "sh", text)


def shell_lines(markdown: str) -> Iterator[ShellLine]:
    """Every line of a block ``sh``, every ``$ `` line of a ``console``, every span that calls."""
    for block in blocks(markdown):
        if block.language == "sh":
            lines = joined(block.text).splitlines()
            yield from (ShellLine(line) for line in lines if line.strip())
        elif block.language == "console":
            for part in re.split(r"^\$ ", joined(block.text), flags=re.M)[1:]:
                line, _, shown = part.partition("\n")
                yield ShellLine(line, shown)
    for span in _SPAN.finditer(re.sub(_BLOCK, "", markdown)):
        text = " ".join(span[1].split())
        if text.startswith(_PROGRAMS):
            yield ShellLine(text, is_span=True)


def filled(line: str, places: dict[str, str]) -> str:
    """With all that is optional, and a value in every place that a reader would fill.

    Args:
        line: such as ``infer-os chat MODEL [--session FILE]``.
        places: regular expressions of places, and what comes there; the first that fits counts.
    """
    # what stands in single quotes is meant as it is
    return "".join(
        part if number % 2 else _filled(part, places)
        for number, part in enumerate(re.split(r"('[^']*')", line))
    )


def _filled(line: str, places: dict[str, str]) -> str:
    # the first of alternatives, and of a synopsis everything at once
    line = re.sub(r"\[([^\]]*)\]", lambda m: re.sub(r"\|\w+", "", m[1]), line)
    for place, value in places.items():
        line = re.sub(place, value, line)
    return line


def command_of(line: str) -> str:
    """The command of ``infer-os`` that a line calls, "" if none."""
    called = re.search(r"\binfer-os ", line)
    if not called:
        return ""
    return next((word for word in words(line[called.start() :]) if word[0] != "-"), "")


def with_options(line: str, options: str) -> str:
    """The call of ``infer-os`` with those of ``--name value ...`` that it does not give itself."""
    begin = line.index("infer-os ")
    before, call = line[:begin], line[begin:]
    cut = _REST.search(call)
    end = cut.start() if cut else len(call)
    given = set(words(call))
    more = [
        option for option in re.findall(r"-\S+(?: [^-\s]\S*)?", options)
        if option.split()[0] not in given
    ]  # fmt: skip
    return before + " ".join([call[:end], *more]) + call[end:]
