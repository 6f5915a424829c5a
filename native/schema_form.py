"""A checked JSON schema in the form that llguidance enforces exactly.

In: a schema of :mod:`.json_schema`. Out: one whose texts all follow the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .json_schema import NAMED, REMARKS, SUBSCHEMA, SUBSCHEMAS, failure, inner_schemas, referred

#: Keywords that combine a schema with others.
_COMPOSING = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
#: Keywords that require nothing once a schema has been checked.
_LEFT_OUT = frozenset({"$schema", "$id", "uniqueItems"})


def exact_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema in llguidance's form.

    Raises:
        GrammarError: no finite text follows it.
    """
    _check_ends(schema)
    definitions = _has_composed_reference(schema, composed=False)
    made = _closed(schema, composed=False, definitions=definitions)
    assert isinstance(made, dict)
    return made


def parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema and those within it, each with its place, the innermost first."""
    found: list[tuple[str, Any]] = [("", schema)]
    for place, one in found:  # grows while being read
        if isinstance(one, dict):
            for key, value in one.items():
                found.extend(inner_schemas(f"{place}/{key}", key, value))
    yield from ((place, one) for place, one in reversed(found) if isinstance(one, dict))


def _include_limits(schema: dict[str, Any]) -> None:
    """Write exclusive limits as inclusive ones.

    llguidance 1.9.1 accepts 37 as a number above 37 and below 37.5. A whole number has a next one;
    of other numbers, those within a billionth of the limit are lost.
    """
    whole = schema.get("type") == "integer"
    for key, other, up in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if key not in schema:
            continue
        limit = schema.pop(key)
        if whole:
            next_one = math.floor(limit) + 1 if up > 0 else math.ceil(limit) - 1
        else:
            next_one = limit + up * max(1e-9, 4 * math.ulp(float(limit)))
        tighter = max if up > 0 else min
        schema[other] = tighter(next_one, schema.get(other, next_one))


def _musts(schema: dict[str, Any], root: Any) -> Iterator[Any]:
    """The schemas that some part of every text of this one must follow."""
    if "$ref" in schema:
        yield referred(root, schema["$ref"])
    yield from schema.get("allOf", ())
    for key in ("anyOf", "oneOf"):
        if len(schema.get(key, ())) == 1:
            yield from schema[key]
    if schema.get("type") == "object":
        listed = schema.get("properties", {})
        yield from (listed[name] for name in schema.get("required", ()) if name in listed)
    if schema.get("type") == "array" and (least := schema.get("minItems", 0)):
        first = schema.get("prefixItems", [])
        yield from first[:least]
        if least > len(first) and "items" in schema:
            yield schema["items"]


def _check_ends(root: dict[str, Any]) -> None:
    """Find a schema whose texts must endlessly contain texts of the same schema."""
    done: set[int] = set()
    for place, start in parts(root):
        # the path so far, each step with what remains to follow from it
        way: list[tuple[int, Iterator[Any]]] = [(id(start), _musts(start, root))]
        on_way = {id(start)}
        while way:
            step = next((s for s in way[-1][1] if isinstance(s, dict) and id(s) not in done), None)
            if step is None:
                done.add(way[-1][0])
                on_way.discard(way.pop()[0])
            elif id(step) in on_way:
                raise failure(place, "it leads back to itself, so no text of it ever ends")
            else:
                on_way.add(id(step))
                way.append((id(step), _musts(step, root)))


def _siblings(schema: dict[str, Any]) -> set[str]:
    return schema.keys() - REMARKS - {"$id"}


def _is_composed(schema: dict[str, Any], key: str, composed: bool) -> bool:
    """Whether a keyword's value is combined with other schemas."""
    if key in ("$defs", "definitions"):
        return False
    if key == "oneOf" or (key == "allOf" and len(schema[key]) > 1):
        return True
    if key in _COMPOSING:
        return composed or len(_siblings(schema)) > 1
    return composed or not _COMPOSING.isdisjoint(schema)


def _has_composed_reference(schema: Any, *, composed: bool) -> bool:
    """Whether some ``$ref`` is combined with other keywords or schemas."""
    if not isinstance(schema, dict):
        return False
    if "$ref" in schema and (composed or len(_siblings(schema)) > 1):
        return True
    return any(
        _has_composed_reference(one, composed=_is_composed(schema, key, composed))
        for key, value in schema.items()
        for _place, one in inner_schemas("", key, value)
    )


def _closed(schema: Any, *, composed: bool, definitions: bool) -> Any:
    """The schema with objects limited to their listed properties.

    If a schema does not mention others, none are needed, and a model would go on adding them. A
    schema that is combined with others stays as it is: it may be about their properties.
    """
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        inside = definitions if key in ("$defs", "definitions") else (
            _is_composed(schema, key, composed)
        )  # fmt: skip
        if key in _LEFT_OUT:
            continue
        if key in SUBSCHEMA:
            made[key] = _closed(value, composed=inside, definitions=definitions)
        elif key in SUBSCHEMAS:
            made[key] = [_closed(v, composed=inside, definitions=definitions) for v in value]
        elif key in NAMED:
            made[key] = {
                name: _closed(v, composed=inside, definitions=definitions)
                for name, v in value.items()
            }
        else:
            made[key] = value
    _include_limits(made)
    listed = schema.get("properties", {})
    if (
        listed and "additionalProperties" not in schema and not composed
        and _COMPOSING.isdisjoint(schema) and listed.keys() >= set(schema.get("required", ()))
    ):  # fmt: skip
        made["additionalProperties"] = False
    return made
