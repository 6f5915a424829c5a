"""Values of a record that are more than a setting: its messages, its constraint, its biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..chat.frame import Message
from ..sampling_settings import read_biases
from ..settings import CONSTRAINTS, NO_ADAPTER

#: Tokens with numbers: an object, or a text as an option has it.
BIASES = "logit_bias"
_ROLES = ("system", "user", "assistant")


class BadValue(Exception):
    """What is wrong with a record."""


def biases_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The record's biases, instead of the run's."""
    if BIASES not in given:
        return {}
    value = given[BIASES]
    if not isinstance(value, (str, Mapping)):
        raise BadValue(f'"{BIASES}" is an object of tokens and numbers, not {kind_of(value)}')
    return {BIASES: read_biases(value)}


def adapter_of(given: Mapping[str, Any]) -> str | None:
    """The adapter that the record names: "" for none; None where it says nothing."""
    name = given.get("adapter")
    if name is not None and not isinstance(name, str):
        raise BadValue(f'"adapter" is a text, not {kind_of(name)}')
    return "" if name == NO_ADAPTER else name


def constraint_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the record's text must follow, instead of the run's constraint."""
    texts = {key: given[key] for key in CONSTRAINTS if key in given}
    if len(texts) > 1:
        raise BadValue(f"{' and '.join(map(json.dumps, texts))}: a record has one of them")
    for key, value in texts.items():
        if key == "json_schema" and isinstance(value, (Mapping, bool)):
            value = texts[key] = _schema_text(value)
        if not isinstance(value, str):
            raise BadValue(f'"{key}" is a text, not {kind_of(value)}')
        if not value:
            raise BadValue(f'"{key}" is empty')
    return {**dict.fromkeys(CONSTRAINTS, ""), **texts} if texts else {}


def _schema_text(value: Any) -> str:
    """A schema that came as an object, which in Python may hold anything."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f'"json_schema" cannot be written as JSON: {error}') from None


def messages_of(value: Any) -> tuple[Message, ...]:
    """The record's conversation, which ends with a message of the user."""
    if not isinstance(value, (list, tuple)) or not value:
        raise BadValue('"messages" is a list of {"role", "content"}')
    found: list[Message] = []
    for item in value:
        if (
            not isinstance(item, Mapping) or item.get("role") not in _ROLES
            or not isinstance(item.get("content"), str)
        ):  # fmt: skip
            raise BadValue(
                f'message {len(found) + 1} needs a "role" ({", ".join(_ROLES)}) and a "content"'
            )
        found.append(Message(item["role"], item["content"]))
    if found[-1].role != "user":
        raise BadValue(f"the last message is of the {found[-1].role}: one of the user is answered")
    return tuple(found)


def kind_of(value: Any) -> str:
    """What a value is, in a user's words."""
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number",
             list: "a list", dict: "an object"}  # fmt: skip
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
