"""GBNF grammars, read within bounds: text in, a grammar for llguidance out.

The notation is llama.cpp's, https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
A grammar without recursion becomes one regular expression, which is matched fast and exactly; any
other becomes rules over single characters, so that no character is taken by the wrong rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import GrammarError

ROOT = "root"
#: Bounds on what is read: characters of the text, rules, nested brackets, repetitions.
MOST_CHARACTERS, MOST_RULES, MOST_NESTED, MOST_REPEATS = 300_000, 5_000, 100, 100_000
#: Greatest length and depth of a regular expression, with counted repetitions written out.
_MOST_EXPRESSION = 20_000
_LAST = 0x10FFFF
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COUNTS = re.compile(r"\{[ \t]*([0-9]{1,18})[ \t]*(?:(,)[ \t]*([0-9]{1,18})?[ \t]*)?\}")
_SPACE, _LINES = re.compile(r"(?:[ \t]|#[^\r\n]*)*"), re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class Chars:
    """One character, as the class of a regular expression."""

    expression: str


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to another rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node, from ``least`` to ``most`` times; ``most`` None is no limit."""

    node: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Alternatives, each a sequence of nodes."""

    alternatives: tuple[tuple[Node, ...], ...]


Node = Chars | Ref | Repeat | Choice


def read_gbnf(text: str) -> dict[str, Choice]:
    """The rules of a grammar, by name.

    Raises:
        GrammarError: it cannot be read, or is larger than the bounds.
    """
    if len(text) > MOST_CHARACTERS:
        raise GrammarError(f"the grammar has {len(text)} characters; at most {MOST_CHARACTERS}")
    rules = _Reader(text).rules()
    if ROOT not in rules:
        raise GrammarError(f"the grammar has no rule named {ROOT}")
    return rules


def lark_of_gbnf(text: str) -> str:
    """A GBNF grammar in the notation of llguidance.

    Raises:
        GrammarError: it cannot be read, is too large, or no text of it can ever end.
    """
    rules = read_gbnf(text)
    uses = {name: _references(rule) for name, rule in rules.items()}
    for name, used in uses.items():
        if missing := sorted(used - rules.keys()):
            raise GrammarError(f"rule {name} names {missing[0]}, which is not a rule")
    if ROOT not in _productive(rules, uses):
        raise GrammarError(
            f"the rule {ROOT} never ends: each of its alternatives leads back to itself"
        )
    expression = _expression(rules, uses)
    if expression is not None:
        return f"start: /{expression}/\n" if expression else 'start: ""\n'
    return _rules_text(rules, uses)


class _Reader:
    """Reads rules; brackets are kept on a list, so that depth costs no C stack."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def _fail(self, what: str) -> GrammarError:
        line = self._text.count("\n", 0, self._at) + 1
        return GrammarError(f"line {line} of the grammar: {what}")

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def rules(self) -> dict[str, Choice]:
        rules: dict[str, Choice] = {}
        self._skip(_LINES)
        while self._at < len(self._text):
            name = self._name()
            if name in rules:
                raise self._fail(f"the rule {name} occurs twice")
            if len(rules) >= MOST_RULES:
                raise self._fail(f"more than {MOST_RULES} rules")
            self._skip(_SPACE)
            if not self._text.startswith("::=", self._at):
                raise self._fail(f"expected ::= after {name}")
            self._at += 3
            self._skip(_LINES)
            rules[name] = self._choice()
            self._skip(_LINES)
        return rules

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if not found:
            raise self._fail(f"expected the name of a rule, found {self._peek()!r}")
        self._at = found.end()
        return found[0]

    def _choice(self) -> Choice:
        """The alternatives of a rule, to the end of its line."""
        # for each open bracket: the earlier alternatives, and the nodes of the current one
        stack: list[tuple[list[tuple[Node, ...]], list[Node]]] = [([], [])]
        # the nodes that a following repetition takes: a literal is several
        last = 0
        while True:
            self._skip(_LINES if len(stack) > 1 else _SPACE)
            alternatives, nodes = stack[-1]
            sign = self._peek()
            if sign == "(":
                if len(stack) > MOST_NESTED:
                    raise self._fail(f"more than {MOST_NESTED} nested brackets")
                self._at += 1
                stack.append(([], []))
                last = 0
            elif sign == "|":
                self._at += 1
                self._skip(_LINES)
                alternatives.append(tuple(nodes))
                nodes.clear()
                last = 0
            elif sign == ")" and len(stack) > 1:
                self._at += 1
                stack.pop()
                stack[-1][1].append(Choice((*alternatives, tuple(nodes))))
                last = 1
            elif sign and sign in "*+?{":
                self._repeat(nodes, last)
                last = 1
            elif sign in ("", "\r", "\n"):
                if len(stack) > 1:
                    raise self._fail("unexpected end: a bracket is open")
                return Choice((*alternatives, tuple(nodes)))
            else:
                made = self._atom(sign)
                nodes.extend(made)
                last = len(made)
                if not made:  # an empty text, which may be repeated
                    nodes.append(Choice(((),)))
                    last = 1

    def _atom(self, sign: str) -> list[Node]:
        if sign == '"':
            return list(self._literal())
        if sign == "[":
            return [self._class()]
        if sign == ".":
            self._at += 1
            return [Chars(_class_text([(0, _LAST)], negated=False))]
        if _NAME.match(sign):
            return [Ref(self._name())]
        if sign in "<!":
            raise self._fail("tokens in a grammar, <...>, are not supported; write their text")
        raise self._fail(f"unexpected {sign!r}")

    def _repeat(self, nodes: list[Node], last: int) -> None:
        if not last:
            raise self._fail(f"{self._peek()!r} has nothing before it to repeat")
        sign, most = self._peek(), None
        if sign == "{":
            found = _COUNTS.match(self._text, self._at)
            if not found:
                raise self._fail("expected {n}, {n,} or {n,m}")
            least = int(found[1])
            most = int(found[3]) if found[3] else None if found[2] else least
            self._at = found.end()
        else:
            self._at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if most is not None and most < least:
            raise self._fail(f"{{{least},{most}}}: the second count is less than the first")
        if max(least, most or 0) > MOST_REPEATS:
            raise self._fail(f"a repetition of more than {MOST_REPEATS} times")
        taken = tuple(nodes[len(nodes) - last :])
        del nodes[len(nodes) - last :]
        if last == 1 and isinstance(taken[0], Repeat):
            raise self._fail(f"{sign!r} after another repetition: put brackets around that")
        nodes.append(Repeat(taken[0] if last == 1 else Choice((taken,)), least, most))

    def _character(self) -> str:
        sign = self._peek()
        if not sign:
            raise self._fail("unexpected end: a text or a class of characters is open")
        self._at += 1
        if sign != "\\":
            return sign
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._text[self._at : self._at + _HEX.get(kind, 0)]
        if kind not in _HEX or not re.fullmatch(f"[0-9a-fA-F]{{{_HEX[kind]}}}", digits):
            raise self._fail(f"\\{kind}{digits} is not an escape")
        code = int(digits, 16)
        if code > _LAST or 0xD800 <= code <= 0xDFFF:
            raise self._fail(f"\\{kind}{digits} is not a character")
        self._at += len(digits)
        return chr(code)

    def _literal(self) -> list[Chars]:
        self._at += 1
        found: list[Chars] = []
        while self._peek() != '"':
            code = ord(self._character())
            found.append(Chars(_class_text([(code, code)], negated=False)))
        self._at += 1
        return found

    def _class(self) -> Chars:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            first = last = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character()
            if last < first:
                raise self._fail(f"the range {first!r} to {last!r} goes from high to low")
            ranges.append((ord(first), ord(last)))
        self._at += 1
        if not ranges:
            if not negated:
                raise self._fail("a class without characters, []")
            return Chars(_class_text([(0, _LAST)], negated=False))
        return Chars(_class_text(ranges, negated=negated))


def _class_text(ranges: list[tuple[int, int]], *, negated: bool) -> str:
    spans = (rf"\x{{{a:X}}}" if a == b else rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in ranges)
    return f"[{'^' if negated else ''}{''.join(spans)}]"


def _references(node: Node) -> set[str]:
    if isinstance(node, Ref):
        return {node.name}
    if isinstance(node, Repeat):
        return _references(node.node)
    if isinstance(node, Choice):
        return {name for nodes in node.alternatives for one in nodes for name in _references(one)}
    return set()


def _productive(rules: dict[str, Choice], uses: dict[str, set[str]]) -> set[str]:
    """The rules that some finite text follows."""
    users: dict[str, list[str]] = {}
    for name, used in uses.items():
        for one in used:
            users.setdefault(one, []).append(name)
    found: set[str] = set()

    def ends(node: Node) -> bool:
        if isinstance(node, Ref):
            return node.name in found
        if isinstance(node, Repeat):
            return node.least == 0 or ends(node.node)
        if isinstance(node, Choice):
            return any(all(map(ends, nodes)) for nodes in node.alternatives)
        return True

    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in found and ends(rules[name]):
            found.add(name)
            waiting.extend(users.get(name, ()))
    return found


def _reachable(uses: dict[str, set[str]]) -> list[str]:
    found, waiting = {ROOT: None}, [ROOT]
    while waiting:
        for name in sorted(uses[waiting.pop()]):
            if name not in found:
                found[name] = None
                waiting.append(name)
    return list(found)


def _expression(rules: dict[str, Choice], uses: dict[str, set[str]]) -> str | None:
    """The grammar as one regular expression; None if it recurses or would be too long."""
    names = _reachable(uses)
    open_uses = {name: len(uses[name]) for name in names}
    users: dict[str, list[str]] = {}
    for name in names:
        for one in uses[name]:
            users.setdefault(one, []).append(name)
    ready = [name for name in names if not open_uses[name]]
    # text, length with counts written out, depth
    done: dict[str, tuple[str, int, int]] = {}

    def write(node: Node) -> tuple[str, int, int]:
        if isinstance(node, Chars):
            return node.expression, 1, 1
        if isinstance(node, Ref):
            return done[node.name]
        if isinstance(node, Repeat):
            inner, size, depth = write(node.node)
            most = "" if node.most is None else node.most
            counts = f"{{{node.least},{most}}}"
            return f"(?:{inner}){counts}", size * max(node.least, node.most or 1, 1), depth + 1
        parts = [[write(one) for one in nodes] for nodes in node.alternatives]
        text = "|".join("".join(part[0] for part in nodes) for nodes in parts)
        depth = max((part[2] for nodes in parts for part in nodes), default=0)
        size = sum(part[1] for nodes in parts for part in nodes)
        simple = len(parts) == 1
        return (text if simple else f"(?:{text})"), size, depth + (not simple)

    while ready:
        name = ready.pop()
        text, size, depth = done[name] = write(rules[name])
        if len(text) > 8 * _MOST_EXPRESSION or size > _MOST_EXPRESSION or depth > MOST_NESTED:
            return None
        for user in users.get(name, ()):
            open_uses[user] -= 1
            if not open_uses[user]:
                ready.append(user)
    return done[ROOT][0] if ROOT in done else None


def _rules_text(rules: dict[str, Choice], uses: dict[str, set[str]]) -> str:
    """The rules over single characters."""
    names = _reachable(uses)
    rule_names = {name: f"r{i}" for i, name in enumerate(names)}
    characters: dict[str, str] = {}

    def write(node: Node) -> str:
        if isinstance(node, Chars):
            return characters.setdefault(node.expression, f"C{len(characters)}")
        if isinstance(node, Ref):
            return rule_names[node.name]
        if isinstance(node, Repeat):
            most = "" if node.most is None else node.most
            return f"({write(node.node)}){{{node.least},{most}}}"
        return "(" + " | ".join(
            " ".join(map(write, nodes)) or '""' for nodes in node.alternatives
        ) + ")"  # fmt: skip

    lines = [f"start: {rule_names[ROOT]}"]
    lines += [f"{rule_names[name]}: {write(rules[name])}" for name in names]
    lines += [
        f"{name}: /{expression}/"
        for name, expression in zip(characters.values(), characters, strict=True)
    ]
    return "\n".join(lines) + "\n"
