"""JSON schemas, checked keyword by keyword before use.

In: the text of a schema. Out: the schema, or an error that names the keyword and its place. Every
keyword of draft 2020-12 is either enforced exactly or refused here: nothing is ignored.
Their meaning: https://json-schema.org/draft/2020-12/json-schema-validation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from .errors import GrammarError

#: Bounds on what is read: characters, nested objects, lengths that can be enforced.
MOST_CHARACTERS, MOST_NESTED, MOST_COUNT = 1_000_000, 100, 100_000
#: Most characters and most nested brackets of a pattern.
MOST_PATTERN, MOST_BRACKETS = 10_000, 100
#: Longest regular expression, with counted repetitions written out.
_MOST_REPEATED = 100_000
#: A part of a regular expression: a class, an escape, a count, a bracket, or one character.
_PIECE = re.compile(
    r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\[xuUpP]\{[^}]*\}|\\.|(\{[0-9]+,?[0-9]*\})|.", re.DOTALL
)
#: Keywords that describe a schema and require nothing.
REMARKS = frozenset({
    "$schema", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
    "deprecated", "readOnly", "writeOnly",
})  # fmt: skip
SUBSCHEMA = frozenset({"items", "additionalProperties"})
SUBSCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
NAMED = frozenset({"properties", "$defs", "definitions"})
_COUNTS = frozenset({
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
})  # fmt: skip
_LIMITS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_OTHERS = frozenset({
    "$ref", "$id", "type", "enum", "const", "required", "pattern", "format", "uniqueItems",
})  # fmt: skip
#: What can be enforced.
ENFORCED = frozenset(SUBSCHEMA | SUBSCHEMAS | _COUNTS | _LIMITS | _OTHERS | {"properties"})
#: Keywords of JSON Schema that cannot be enforced while a text is written.
REFUSED = frozenset({
    "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies",
    "contains", "minContains", "maxContains", "propertyNames", "patternProperties",
    "unevaluatedItems", "unevaluatedProperties", "additionalItems", "contentEncoding",
    "contentMediaType", "contentSchema", "$anchor", "$dynamicRef", "$dynamicAnchor",
    "$recursiveRef", "$recursiveAnchor", "$vocabulary",
})  # fmt: skip
_TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
#: Formats that are determined by their syntax alone.
FORMATS = ("uuid", "ipv4")
#: Numbers beyond these are not exact in a double.
_MOST_NUMBER = 2**53


def read_schema(text: str) -> dict[str, Any]:
    """A schema that can be enforced, each keyword of it.

    Raises:
        GrammarError: it is not JSON, not a schema, too large, or cannot be enforced.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MOST_CHARACTERS:
        raise GrammarError(
            f"the JSON schema has {len(text)} characters; at most {MOST_CHARACTERS} can be used"
        )
    try:
        schema = json.loads(
            text, parse_constant=_no_number, parse_int=_integer, parse_float=_fraction,
            object_pairs_hook=_object,
        )  # fmt: skip
    except RecursionError:
        raise GrammarError(f"the JSON schema is nested deeper than {MOST_NESTED}") from None
    except ValueError as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise GrammarError("the JSON schema is not an object")
    # any value may nest, even an enum's
    _check_depth(schema)
    try:
        json.dumps(schema, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise GrammarError(
            "the JSON schema has half of a surrogate pair (\\ud800 to \\udfff): no character"
        ) from None
    _check(schema, schema)
    if isinstance(schema, bool):
        return {"allOf": [schema]}
    return schema


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _fraction(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {_shortened(digits)} is larger than a double can hold")
    return value


def _integer(digits: str) -> int:
    # Python does not even read a longer one
    _fraction(digits)
    return int(digits)


def _shortened(digits: str) -> str:
    return digits if len(digits) <= 24 else f"{digits[:20]}... ({len(digits)} characters)"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        found[key] = value
    return found


def _check_depth(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        if depth > MOST_NESTED:
            raise GrammarError(f"the JSON schema is nested deeper than {MOST_NESTED}")
        level = [
            inner for value in level if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]  # fmt: skip
        depth += 1


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def failure(place: str, what: str) -> GrammarError:
    """The error for a place in a schema."""
    return GrammarError(f"the JSON schema, at {place or '/'}: {what}")


def _check(schema: Any, root: Any) -> None:
    waiting = [("", schema)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            raise failure(place, f"a schema is an object, true or false; this is {_kind(one)}")
        for key, value in one.items():
            _check_keyword(f"{place}/{_escaped(key)}", key, value, root)
            waiting.extend(inner_schemas(f"{place}/{_escaped(key)}", key, value))
        _check_together(place, one)


def inner_schemas(place: str, key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The schemas within a keyword's value, with their places."""
    if key in SUBSCHEMA:
        yield place, value
    elif key in SUBSCHEMAS:
        yield from ((f"{place}/{i}", one) for i, one in enumerate(value))
    elif key in NAMED:
        yield from ((f"{place}/{_escaped(name)}", one) for name, one in value.items())


def _check_keyword(place: str, key: str, value: Any, root: Any) -> None:
    if key in REFUSED:
        raise failure(place, f"the keyword {key} cannot be enforced while a text is written")
    if key in _COUNTS:
        _check_count(place, key, value)
    elif key in _LIMITS:
        _check_limit(place, key, value)
    elif key in SUBSCHEMA and isinstance(value, list):
        raise failure(place, f"a list as {key} belongs to older drafts; write prefixItems")
    elif key in SUBSCHEMAS and (not isinstance(value, list) or not value):
        raise failure(place, f"{key} takes a list of schemas; this is {_kind(value)}")
    elif key in NAMED and not isinstance(value, dict):
        raise failure(place, f"{key} takes an object of schemas; this is {_kind(value)}")
    elif key in _CHECKS:
        _CHECKS[key](place, value, root)
    elif key not in ENFORCED and key not in REMARKS:
        raise failure(place, f"{key} is not a known keyword")


def _check_count(place: str, key: str, value: Any) -> None:
    if isinstance(value, float) and value.is_integer():
        raise failure(place, f"{key} {value}: write it without a fraction")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise failure(place, f"{key} takes a whole number from 0 on; this is {_kind(value)}")
    if value > MOST_COUNT:
        raise failure(place, f"{key} {value}: at most {MOST_COUNT} can be enforced")


def _check_limit(place: str, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise failure(place, f"{key} takes a number; this is {_kind(value)}")
    if not math.isfinite(value) or abs(value) > _MOST_NUMBER:
        raise failure(place, f"{key} {value}: at most {_MOST_NUMBER} can be enforced")
    if key == "multipleOf":
        if value <= 0:
            raise failure(place, f"multipleOf {value}: must be larger than 0")
        # in binary, multiples of a fraction are rarely exact for the reader of the text
        if value != int(value) or value > 10_000:
            raise failure(place, f"multipleOf {value}: only whole numbers to 10000 can be enforced")


def _check_together(place: str, schema: dict[str, Any]) -> None:
    """Check what depends on several keywords of one schema."""
    least, required = schema.get("minProperties", 0), set(schema.get("required", ()))
    # a text may repeat a key, and a reader takes only one of them
    if least > max(1, len(required)):
        raise failure(
            f"{place}/minProperties",
            f"minProperties {least} can be enforced up to 1, or the number of required properties",
        )


def _check_type(place: str, value: Any, _root: Any) -> None:
    kinds = value if isinstance(value, list) else [value]
    if not kinds or any(kind not in _TYPES for kind in kinds):
        raise failure(place, f"type {json.dumps(value)}: expected one of {', '.join(_TYPES)}")


def _check_enum(place: str, value: Any, _root: Any) -> None:
    if not isinstance(value, list) or not value:
        raise failure(place, f"enum takes a list of values; this is {_kind(value)}")


def _check_required(place: str, value: Any, _root: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise failure(place, f"required takes a list of names; this is {_kind(value)}")


def _check_ref(place: str, value: Any, root: Any) -> None:
    if not isinstance(value, str):
        raise failure(place, f"$ref takes a text; this is {_kind(value)}")
    if value != "#" and not value.startswith("#/"):
        raise failure(place, f"$ref {value}: only places of the same schema, #/..., are followed")
    if referred(root, value) is None:
        raise failure(place, f"$ref {value}: there is nothing at that place")
    if not re.search(r"^#(/(\$defs|definitions|properties)/[^/]+)*(/items)?$", value):
        raise failure(place, f"$ref {value}: only schemas under $defs or properties are followed")


def referred(root: Any, reference: str) -> Any:
    """What ``#/...`` names in a schema; None if there is nothing."""
    target = root
    for part in reference[2:].split("/") if reference != "#" else ():
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if not isinstance(target, dict) or name not in target:
            return None
        target = target[name]
    return target


def _check_id(place: str, value: Any, _root: Any) -> None:
    if place != "/$id" or not isinstance(value, str):
        raise failure(place, "$id is only allowed at the top")


def _check_draft(place: str, value: Any, _root: Any) -> None:
    if not isinstance(value, str) or "json-schema.org/" not in value:
        raise failure(place, f"$schema {value!r}: expected a draft of https://json-schema.org")
    if "draft-04" in value or "draft-03" in value:
        raise failure(place, f"$schema {value}: drafts before 6 have other keywords")


def _check_pattern(place: str, value: Any, _root: Any) -> None:
    if not isinstance(value, str):
        raise failure(place, f"pattern takes a text; this is {_kind(value)}")
    try:
        check_expression(value)
    except GrammarError as error:
        raise failure(place, f"pattern: {error}") from None


def _check_format(place: str, value: Any, _root: Any) -> None:
    if value not in FORMATS:
        raise failure(
            place, f"format {value} cannot be enforced; {' and '.join(FORMATS)} can, else pattern"
        )


def _check_unique(place: str, value: Any, _root: Any) -> None:
    if value is not False:
        raise failure(place, "the keyword uniqueItems cannot be enforced while a text is written")


_CHECKS: dict[str, Callable[[str, Any, Any], None]] = {
    "type": _check_type, "enum": _check_enum, "required": _check_required, "$ref": _check_ref,
    "$id": _check_id, "$schema": _check_draft, "pattern": _check_pattern,
    "format": _check_format, "uniqueItems": _check_unique,
}  # fmt: skip


def check_expression(expression: str) -> None:
    """Check that a regular expression is within bounds, before Rust reads it.

    Raises:
        GrammarError: it is too long, or has too many nested brackets.
    """
    if len(expression) > MOST_PATTERN:
        raise GrammarError(
            f"the regular expression has {len(expression)} characters; at most {MOST_PATTERN}"
        )
    # for each open bracket: the characters it stands for, and those of its last part
    stack, at = [[0, 0]], 0
    for found in _PIECE.finditer(expression):
        piece = found[0]
        if piece.startswith("(") and len(stack) > MOST_BRACKETS:
            raise GrammarError(
                f"the regular expression has more than {MOST_BRACKETS} nested brackets"
            )
        if piece.startswith("("):
            stack.append([0, 0])
            continue
        if piece == ")" and len(stack) > 1:
            size = sum(stack.pop())
            stack[-1] = [sum(stack[-1]), size]
        elif found[1]:
            stack[-1][1] *= max(1, *map(_count, re.findall("[0-9]+", found[1])))
        else:
            stack[-1] = [sum(stack[-1]), 1]
        at = max(at, sum(map(sum, stack)))
    if at > _MOST_REPEATED:
        raise GrammarError(
            f"the regular expression has more than {_MOST_REPEATED} characters with its counts "
            "written out"
        )


def _count(digits: str) -> int:
    """The count of a repetition; a huge one just stays too large."""
    digits = digits.lstrip("0")
    return int(digits[:9] or "0") if len(digits) <= 9 else 10**9


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number",
             list: "a list", dict: "an object"}  # fmt: skip
    if value == [] or value == {}:
        return "empty"
    return "null" if value is None else names.get(type(value), type(value).__name__)
