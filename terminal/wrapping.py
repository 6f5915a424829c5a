"""Break text between words while it is being written to a terminal.

Goes in: text as it comes, in pieces of any size. Comes out: the same text with line breaks and
cursor movements, so that each piece shows at once and a word that reaches the edge moves to the
next line as a whole. The text's own line breaks and indentation stay.
"""

from __future__ import annotations

from collections.abc import Callable

_JOINER = "\u200d"
_TAB = 8
#: What must not begin a line, in the scripts that can be broken between any two letters.
_CLOSING = frozenset(
    "、。，．・：；？！゛゜ヽヾゝゞ々ー’”）〕］｝〉》」』】…ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
)


class WordWrap:
    """The cursor's place in a line, and the word before it."""

    def __init__(self, columns: Callable[[], int]) -> None:
        """Begin at the start of a line; ``columns`` says how wide the terminal is now."""
        self._columns = columns
        self._width = columns()
        self._start = 0  # column where the word begins
        self._word = ""
        # whether the word cannot be moved: it fills its line, or its column is unknown
        self._fixed = False
        self._lost = False  # the terminal was resized in this line
        self._after_break = False  # we just broke the line: blanks are dropped

    def push(self, text: str) -> str:
        """What to write for the next piece of text."""
        if (width := max(self._columns(), 2)) != self._width:
            # where the terminal has put the cursor is unknown until the next line
            self._start, self._word = self._column() % width, ""
            self._fixed = self._lost = True
            self._width = width
        return "".join(map(self._character, text))

    def cut(self, line: str) -> list[str]:
        """The parts of a line between which it may be broken, with the blanks after them."""
        parts = [""]
        for c in line:
            if (parts[-1][-1:] == " " and c != " ") or self._may_break_before(c):
                parts.append("")
                self._word = ""
            parts[-1] += c
            self._word = "" if c == " " else self._word + c
        return parts

    def _character(self, c: str) -> str:
        if c == "\n":
            self._lost = False
            self._begin(0)
            self._after_break = False
            return c
        if c in " \t":
            return self._blank(c)
        self._after_break = False
        if self._may_break_before(c):
            self._begin(self._column())
        if self._start + _width(self._word + c) <= self._width:
            self._word += c
            return c
        if self._fixed or self._start == 0:
            # longer than a line: the terminal breaks it, so that it can be copied whole
            self._start, self._word, self._fixed = 0, c, True
            return c
        # back to the word's beginning, clear it, and write it on the next line
        back = f"\r\x1b[{self._start}C\x1b[K" if self._word else ""
        self._start, self._word = 0, self._word + c
        return f"{back}\n{self._word}"

    def _blank(self, c: str) -> str:
        if self._after_break:
            return ""
        column = self._column()
        after = column + 1 if c == " " else (column // _TAB + 1) * _TAB
        if after > self._width:
            self._lost = False
            self._begin(0)
            self._after_break = True
            return "\n"
        self._begin(after)
        return c

    def _begin(self, column: int) -> None:
        self._start, self._word, self._fixed = column, "", self._lost

    def _column(self) -> int:
        return self._start + _width(self._word)

    def _may_break_before(self, c: str) -> bool:
        """Whether a new word begins without a blank before it."""
        if not self._word or c in _CLOSING or self._word.endswith(_JOINER):
            return False
        wide = _width(c) == 2
        # zero-width characters belong to what precedes them
        return wide or (_width(self._word[-1]) == 2 and c.isalnum())


def folded(line: str, columns: int) -> list[str]:
    """Split a line into lines of at most ``columns`` columns, as :class:`WordWrap` does.

    A word longer than a line stays whole: the terminal breaks it.
    """
    if _width(line) <= columns:
        return [line]
    lines, words = [""], WordWrap(lambda: 1 << 30)
    for word in words.cut(line):
        if lines[-1] and _width(lines[-1] + word.rstrip()) > columns:
            lines[-1] = lines[-1].rstrip()
            lines.append(word.lstrip())
        else:
            lines[-1] += word
    return [each.rstrip() for each in lines if each]


def _width(text: str) -> int:
    """Columns of a text without control characters."""
    from wcwidth import wcswidth

    return max(0, wcswidth(text))
