"""Every keyword of JSON Schema is enforced or refused; jsonschema judges what is written.

``INFER_OS_SCHEMAS`` is the number of random schemas (200).
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import BUNDLED, Converter
from random_schemas import Dice, random_schema, with_definitions_at_the_top

from infer_os.native.errors import GrammarError
from infer_os.native.grammar import compiled
from infer_os.native.json_schema import ENFORCED, REFUSED, REMARKS
from infer_os.native.model import LlamaModel
from infer_os.runtime.settings import SamplingSettings

N_SCHEMAS = int(os.environ.get("INFER_OS_SCHEMAS", "200"))
JUDGE = jsonschema.Draft202012Validator

#: For each keyword that is enforced, schemas that ask for it in several ways.
KEYWORDS: dict[str, list[Any]] = {
    "$ref": [
        {"$defs": {"n": {"type": "integer", "minimum": 7, "maximum": 9}}, "$ref": "#/$defs/n"},
        {"type": "array", "maxItems": 1, "items": {"$ref": "#"}},
        {
            "properties": {"v": {"type": "null"}, "next": {"$ref": "#"}}, "type": "object",
            "required": ["v"],
        },
        {"$defs": {"n": {"type": "string", "maxLength": 4}}, "$ref": "#/$defs/n", "minLength": 4},
    ],
    "$id": [{"$id": "https://example.com/a", "type": "null"}],
    "type": [
        {"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": ["null", "boolean"]},
        {"type": "number"}, {"type": "array", "maxItems": 2, "items": {"type": "null"}},
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
    "enum": [{"enum": [1, "two", None, [3], {"four": 4}]}, {"enum": ["a\tb", "é", "\\", '"']}],
    "const": [{"const": {"a": [1.5, True]}}, {"const": "line\nbreak"}, {"const": None}],
    "allOf": [
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]},
        {
            "type": "object",
            "allOf": [
                {"properties": {"a": {"type": "null"}}, "required": ["a"]},
                {"properties": {"b": {"type": "null"}}, "required": ["b"]},
            ],
            "maxProperties": 2,
        },
    ],
    "anyOf": [
        {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 1}]},
        {
            "type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": False,
        },
    ],
    "oneOf": [{"oneOf": [{"type": "null"}, {"type": "boolean"}]}],
    "multipleOf": [
        {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 50},
        {"type": "integer", "multipleOf": 3},
    ],
    "minimum": [{"type": "integer", "minimum": 100}, {"type": "number", "minimum": -0.25}],
    "maximum": [{"type": "integer", "maximum": -100}, {"type": "number", "maximum": 0.125}],
    "exclusiveMinimum": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "number", "exclusiveMinimum": 37.0, "maximum": 37.5},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.25},
        {"type": "integer", "exclusiveMinimum": 4.5, "maximum": 6},
        {"exclusiveMinimum": 3, "type": ["integer", "null"], "maximum": 5},
    ],
    "exclusiveMaximum": [
        {"type": "integer", "exclusiveMaximum": 3, "minimum": 1},
        {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0},
    ],
    "minLength": [{"type": "string", "minLength": 6, "maxLength": 9}],
    "maxLength": [{"type": "string", "maxLength": 3}, {"type": "string", "maxLength": 3000}],
    "pattern": [
        {"type": "string", "pattern": "^[a-c]{2,4}$"},
        {"type": "string", "pattern": "^\\d+(\\.\\d\\d)?$"},
        {"type": "string", "pattern": "^a|b$", "maxLength": 4},
    ],
    "format": [{"type": "string", "format": "uuid"}, {"type": "string", "format": "ipv4"}],
    "items": [
        {"type": "array", "items": {"enum": ["x"]}, "maxItems": 3},
        {"type": "array", "items": False},
    ],
    "prefixItems": [{
        "type": "array", "prefixItems": [{"type": "null"}, {"const": 1}], "items": False,
        "minItems": 1,
    }],
    "minItems": [{"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "null"}}],
    "maxItems": [{"type": "array", "maxItems": 0}],
    "uniqueItems": [{"type": "array", "uniqueItems": False, "items": {"const": 0}, "minItems": 2}],
    "properties": [{"type": "object", "properties": {"a": {"const": 1}, 'q"/~': {"const": 2}}}],
    "additionalProperties": [
        {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
        {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 2},
    ],
    "required": [
        {"type": "object", "properties": {"a": {"const": 1}, "b": {}}, "required": ["a"]},
        {"type": "object", "required": ["x"], "maxProperties": 1},
    ],
    "minProperties": [{"type": "object", "minProperties": 1, "maxProperties": 2}],
    "maxProperties": [{"type": "object", "maxProperties": 1, "additionalProperties": {"const": 1}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def dice(converted: Converter) -> Dice:
    path: Path = converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")
    return Dice(LlamaModel(path, vocab_only=True).vocab)


def judged(schema: Any, dice: Dice, seeds: range, most: int = 400) -> int:
    """Texts that ended under a schema, all of which are valid."""
    judge = JUDGE(schema, format_checker=JUDGE.FORMAT_CHECKER)
    sampling = SamplingSettings(1.0, json_schema=json.dumps(schema))
    finished = 0
    for seed in seeds:
        drawn = dice.draw(sampling, seed, most)
        if drawn.finished:
            finished += 1
            judge.validate(json.loads(drawn.text))
    return finished


def test_every_keyword_is_in_one_table() -> None:
    vocabulary = set(JUDGE.VALIDATORS) | {"if", "then", "else", "$schema", "$defs", "$anchor"}
    assert vocabulary <= ENFORCED | REFUSED | REMARKS
    assert not ENFORCED & REFUSED
    assert set(KEYWORDS) == ENFORCED


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_a_keyword_is_enforced(keyword: str, dice: Dice) -> None:
    for schema in KEYWORDS[keyword]:
        assert judged(schema, dice, range(12)) >= 4, schema


@pytest.mark.parametrize("keyword", sorted(REFUSED))
def test_a_keyword_is_refused_with_its_name_and_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a/b": {"items": {keyword: {}}}}}
    with pytest.raises(GrammarError) as caught:
        compiled("json_schema", json.dumps(schema))
    assert f"at /properties/a~1b/items/{keyword}: " in str(caught.value)
    assert f"keyword {keyword} " in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"minimun": 3}, "at /minimun: minimun is not a known keyword"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance is not a known keyword"),
        ({"uniqueItems": True}, "uniqueItems cannot be enforced"),
        ({"format": "date"}, "at /format: format date cannot be enforced"),
        ({"$ref": "#/$defs/none"}, "there is nothing at that place"),
        ({"$ref": "https://example.com/other"}, "only places of the same schema"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "ever ends"),
        ({"items": [{"type": "null"}]}, "at /items: a list .* write prefixItems"),
        ({"type": "wrong"}, 'at /type: type "wrong": expected one of null'),
        ({"type": "number", "multipleOf": 0.1}, "at /multipleOf: multipleOf 0.1"),
        ({"minLength": -1}, "at /minLength: .*from 0 on"),
        ({"minItems": 1_000_000, "type": "array"}, "at /minItems: minItems 1000000: at most"),
        ({"maximum": 1e300}, "at /maximum: "),
        ({"exclusiveMinimum": True}, "takes a number; this is true or false"),
        ({"minProperties": 2, "type": "object"}, "at /minProperties: "),
        ({"pattern": "(?=a)b", "type": "string"}, "look-around"),
        (
            {
                "type": "array", "minItems": 1,
                "items": {"type": "string", "minLength": 3, "maxLength": 1},
            },
            "at /items: Unsatisfiable",
        ),
        ({"oneOf": [{"minimum": 1}, {"maximum": 5}]}, "oneOf cannot be enforced unless"),
        ({"enum": []}, "at /enum: enum takes a list of values; this is empty"),
        (False, "Unsatisfiable"),
        ([], "not an object"),
        ("text", "not an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_says_where(schema: Any, complaint: str) -> None:
    with pytest.raises(GrammarError, match=complaint) as caught:
        compiled("json_schema", json.dumps(schema))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"items":' * 20_000 + "true" + "}" * 20_000, "nested deeper than 100"),
        ('{"enum":[' + "[" * 150 + "]" * 150 + "]}", "nested deeper than 100"),
        ('{"title": "' + "x" * 1_000_001 + '"}', "at most 1000000"),
        ('{"minimum": NaN}', "NaN is not a JSON number"),
        ('{"type": "null", "type": "string"}', "'type' occurs twice"),
        (r'{"enum": ["\ud800"]}', "half of a surrogate pair"),
        (r'{"properties": {"\udfff": {}}}', "half of a surrogate pair"),
        ("{", "is not JSON"),
        ('{"const": 1e400}', "number 1e400 is larger than a double"),
        ('{"const": [-1' + "0" * 400 + "]}", "larger than a double"),
        ('{"type": "integer", "minimum": 1' + "0" * 400 + "}", "larger than a double"),
        ('{"enum": [1' + "0" * 5000 + "]}", r"1000000000.*\.\.\. \(5001 characters\)"),
        (
            '{"type": "string", "pattern": "a{' + "9" * 5000 + '}"}',
            "/pattern: pattern: .*more than 100000",
        ),
    ],
)
def test_a_text_that_is_no_schema(text: str, complaint: str) -> None:
    with pytest.raises(GrammarError, match=complaint):
        compiled("json_schema", text)


def test_random_schemas(dice: Dice) -> None:
    finished = 0
    for seed in range(N_SCHEMAS):
        schema = with_definitions_at_the_top(random_schema(random.Random(seed)))
        JUDGE.check_schema(schema)
        finished += judged(schema, dice, range(2 * seed, 2 * seed + 2))
    assert finished > 1.8 * N_SCHEMAS


def test_properties_that_are_not_listed_are_not_written(dice: Dice) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "$comment": "open"}
    sampling = SamplingSettings(1.0, json_schema=json.dumps(schema))
    texts = {json.dumps(json.loads(dice.draw(sampling, seed).text)) for seed in range(20)}
    assert texts == {"{}", '{"a": null}'}


def test_no_text_is_filled_up_with_spaces(dice: Dice) -> None:
    schema = {"type": "array", "items": {"type": "object", "additionalProperties": {"const": 1}}}
    for seed in range(20):
        drawn = dice.draw(SamplingSettings(1.0, json_schema=json.dumps(schema)), seed, 60)
        assert "\n" not in drawn.text
        outside = "".join(drawn.text.split('"')[::2])
        assert "  " not in outside and " ]" not in outside and " }" not in outside
