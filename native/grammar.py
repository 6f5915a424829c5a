"""What can constrain a text: a grammar, a JSON schema or a regular expression.

In: their texts. Out: a checked grammar in the notation of llguidance
(https://github.com/guidance-ai/llguidance), which :mod:`.constraint` follows token by token.
"""

from __future__ import annotations

import functools
import json
import re
from itertools import islice
from typing import Any

from .errors import GrammarError
from .gbnf import lark_of_gbnf
from .json_schema import check_expression, failure, read_schema
from .schema_form import exact_form, parts

#: Kinds of constraints, named as the settings that hold them.
KINDS = ("grammar", "json_schema", "regex")
#: How a grammar says that the whole text follows a schema.
_SCHEMA_RULE = re.compile(r"\s*root\s*::=\s*%json\s+(.*)", re.DOTALL)
#: Most parts of a schema to examine when looking for the place where it fails.
_MOST_PARTS = 500
#: Where llguidance's complaint about an expression begins.
_IN_EXPRESSION = re.compile(r"(?=regex parse error:\n|lookarounds not supported)")
#: Columns before the expression in the message of Rust's regex.
_INDENT = 4
#: At most one space after a colon or a comma, and none elsewhere: a text cannot go on with spaces.
_WHITESPACE: Any = {
    "whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?",
    "coerce_one_of": False, "lenient": False,
}  # fmt: skip


@functools.lru_cache(maxsize=32)
def compiled(kind: str, text: str) -> str:
    """A grammar of llguidance.

    Args:
        kind: one of :data:`KINDS`.
        text: GBNF, a JSON schema or a regular expression; all of a generation follows it.

    Raises:
        GrammarError: it cannot be used.
    """
    # a library that only constrained runs load
    from llguidance import LLMatcher

    try:
        text.encode()
    except UnicodeEncodeError:  # invalid UTF-8 on a command line, or half of a pair in a record
        raise GrammarError(
            "it contains half of a surrogate pair, or a byte that is not UTF-8"
        ) from None
    if kind == "grammar" and (schema := _SCHEMA_RULE.fullmatch(text)):
        kind, text = "json_schema", schema[1]
    if kind == "json_schema":
        return _of_schema(exact_form(read_schema(text)))
    if kind == "regex":
        if not text:
            raise GrammarError("the regular expression is empty")
        check_expression(text)
        made, what = LLMatcher.grammar_from_regex(text), "regular expression"
    else:
        if not text.strip():
            raise GrammarError("the grammar is empty, without a rule named root")
        made, what = LLMatcher.grammar_from_lark(lark_of_gbnf(text)), "grammar"
    if said := _complaint(made):
        raise GrammarError(f"the {what}: {said}")
    return str(made)


class _Bytes:
    """The smallest vocabulary: every byte, and an end."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")

    def __call__(self, data: bytes | str) -> list[int]:
        return list(data.encode() if isinstance(data, str) else data)


@functools.cache
def _bytes() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(_Bytes(), n_vocab=257, eos_token=[256])  # type: ignore[arg-type]


def _complaint(grammar: str, *, may_be_empty: bool = True) -> str:
    """Why no text can follow a grammar; "" if one can."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=limits())
    # some limits only apply at the first token
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return one_line(matcher.get_error()) or "it is too large"
    if not may_be_empty and matcher.is_accepting():
        return "no text follows it"
    return ""


def limits() -> Any:
    """What a grammar may cost: bounds on time and memory of its compilation and of each token."""
    from llguidance import LLParserLimits

    # a grammar over single characters has an item for each character of each token
    return LLParserLimits(
        step_max_items=2_000_000, max_items_in_row=10_000, step_lexer_fuel=2_000_000,
        verbose_errors=False,
    )  # fmt: skip


def one_line(said: str) -> str:
    """The first lines of a complaint from llguidance, as one line."""
    if said.startswith("oneOf"):  # its advice is an option that we do not have
        return (
            "the keyword oneOf cannot be enforced unless its schemas exclude each other; use anyOf"
        )
    if place := _IN_EXPRESSION.search(said):
        return _expression_error(said[place.end() :])
    if said.startswith("NoExtensionBias"):  # its name for a text that nothing can begin
        return "no text follows it"
    said = said.replace("<non-verbose/>", "")
    lines = [line.strip() for line in said.partition("<state>")[0].splitlines()]
    return " ".join(line for line in lines if line and set(line) != {"^"})[:300]


def _expression_error(said: str) -> str:
    """What is wrong with an expression, and where, without llguidance's text around it.

    ``said`` is a reason, or the expression with a line of carets below, then the reason.
    """
    lines = said.splitlines()
    if len(lines) < 4 or not lines[0].startswith("regex"):
        return "word boundaries are not supported"
    reason = lines[3].removeprefix("error: ")
    shown, carets = lines[1], lines[2]
    if set(carets) <= {" ", "^"} and "^" in carets and "\\n" not in shown:
        reason += f", at character {carets.index('^') - _INDENT + 1}"
    return reason


def _of_schema(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    def made(one: dict[str, Any]) -> str:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(one), overrides=_WHITESPACE))

    whole = made(schema)
    if not (said := _complaint(whole, may_be_empty=False)):
        return whole
    # llguidance does not say where: find the innermost part that fails on its own
    named: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for place, part in islice(parts(schema), _MOST_PARTS):
        if place and (why := _complaint(made({**part, **named}), may_be_empty=False)):
            raise failure(place, why)
    raise failure("", said)


def check_grammar(text: str) -> None:
    """Check that a GBNF grammar can be used; no model is needed.

    Raises:
        GrammarError: it cannot.
    """
    compiled("grammar", text)


def grammar_of_schema(text: str) -> str:
    """A grammar, ``root ::= %json ...``, of a JSON schema.

    Raises:
        GrammarError: it is not JSON, or has a keyword that cannot be enforced.
    """
    compiled("json_schema", text)
    return f"root ::= %json {text}"
