"""Command lines of ``infer-os`` in Markdown: found, and parsed without being run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# fenced, or indented by four blanks or more
_BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```|^((?:    [^\n]*\n)+)", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`(infer-os [^`]+)`(?!`)")
# at a line's start, behind a prompt, a pipe or an assignment
_LINE = re.compile(r"(?:^|[|;&]|\$ )\s*(?:\w+=\S+ )*(infer-os\s.*)$")
# a remark stands behind more blanks than any option does
_REMARK = re.compile(r"\s{3,}\S.*$")
_OPERATORS = {"|", ">", ">>", "<", "2>", "&&", ";", "&"}


@dataclass(frozen=True)
class CommandLine:
    """What stands in the text; ``whole`` unless only mentioned in a sentence."""

    text: str
    whole: bool


def joined(text: str) -> str:
    """With each line that a backslash continues as one line."""
    return re.sub(r" *\\\n *", " ", text)


def command_lines(markdown: str) -> Iterator[CommandLine]:
    """Every line of a block, and every code span, that calls ``infer-os``."""
    for block in _BLOCK.finditer(markdown):
        for line in joined(block[1] or block[2]).splitlines():
            if found := _LINE.search(line.strip()):
                yield CommandLine(found[1], True)
    for span in _SPAN.finditer(re.sub(_BLOCK, "", markdown)):
        yield CommandLine(" ".join(span[1].split()), False)


def words(text: str) -> list[str]:
    """The arguments: without a remark, without what follows an operator of the shell."""
    # [--optional] and ... are how a synopsis is written
    plain = re.sub(r"\[([^\]]*)\]", r"\1", _REMARK.sub("", text))
    plain = re.sub(r"\s\.\.\.(?=\s|$)", "", plain)
    found = shlex.split(plain, comments=True)[1:]
    end = next((i for i, word in enumerate(found) if word in _OPERATORS), len(found))
    return found[:end]


def complaint(app: Any, line: CommandLine) -> str | None:
    """What the command line would refuse of it; None if it parses. Values are not looked at."""
    arguments = words(line.text)
    if arguments[:1] == ["COMMAND"]:
        return None
    command, name, parent = app, "infer-os", None
    while True:
        context = command.context_class(command, info_name=name, parent=parent)
        try:
            given, rest, _ = command.make_parser(context).parse_args(list(arguments))
        except Exception as error:
            return str(getattr(error, "message", error))
        commands = getattr(command, "commands", None)
        if commands is None:
            break
        if not rest or given.get("help"):
            is_complete = given or getattr(command, "invoke_without_command", False)
            return None if is_complete else "no command"
        if rest[0] not in commands:
            return f"no command {rest[0]!r}"
        command, name, parent, arguments = commands[rest[0]], rest[0], context, rest[1:]
    if rest:
        return f"too many arguments: {rest}"
    missing = [p.name for p in command.params if p.required and not given.get(p.name)]
    if line.whole and missing and not given.get("help"):
        return f"missing: {', '.join(missing)}"
    return None
