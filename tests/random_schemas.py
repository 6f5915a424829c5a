"""Random JSON schemas of every keyword that is enforced, and texts drawn under them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer_os.native.model import Vocab
from infer_os.runtime.sampler import LlamaFilter
from infer_os.runtime.settings import SamplingSettings

_PATTERNS = ("^[a-z]{2,5}$", "^[A-Z][a-z]* [0-9]+$", "^(yes|no|maybe)$", "^\\d{3}-\\d{4}$")
_VALUES: tuple[Any, ...] = (
    "x", "a \"quoted\" word", "line\nbreak", "\u00e9t\u00e9", 0, -7, 3.5, True, None, [1, "b"],
    {"k": [False]}, "", "back\\slash",
)  # fmt: skip


def random_schema(chance: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema that can be satisfied by a text of no great length."""
    kinds = ["string", "integer", "number", "simple", "pattern", "enum", "const", "format"]
    if depth:
        kinds += ["object", "object", "array", "array", "anyOf", "types", "ref", "allOf", "tuple"]
    return _MAKERS[chance.choice(kinds)](chance, depth)


def _string(chance: random.Random, _depth: int) -> dict[str, Any]:
    least = chance.randint(0, 5)
    schema: dict[str, Any] = {"type": "string", "maxLength": least + chance.randint(0, 12)}
    if chance.random() < 0.6:
        schema["minLength"] = least
    return schema


def _bounds(chance: random.Random, low: float, high: float) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    if chance.random() < 0.8:
        bounds[chance.choice(["minimum", "exclusiveMinimum"])] = low
    if chance.random() < 0.8:
        bounds[chance.choice(["maximum", "exclusiveMaximum"])] = high
    return bounds


def _integer(chance: random.Random, _depth: int) -> dict[str, Any]:
    low = chance.randint(-1000, 1000)
    high = low + chance.choice([2, 9, 150, 12345])
    schema = {"type": "integer", **_bounds(chance, low, high)}
    if high - low > 20 and chance.random() < 0.3:
        schema["multipleOf"] = chance.randint(2, 9)
    return schema


def _number(chance: random.Random, _depth: int) -> dict[str, Any]:
    low = round(chance.uniform(-50, 50), chance.randint(0, 3))
    return {"type": "number", **_bounds(chance, low, round(low + chance.choice([0.5, 3, 1e4]), 3))}


def _simple(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": chance.choice(["boolean", "null"])}


def _pattern(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": chance.choice(_PATTERNS)}


def _enum(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"enum": chance.sample(_VALUES, chance.randint(1, 4))}


def _const(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"const": chance.choice(_VALUES)}


def _format(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "string", "format": chance.choice(["uuid", "ipv4"])}


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(["name", "a/b", "t~", "é", "two words", 'q"', "n"], chance.randint(0, 4))
    required = [name for name in names if chance.random() < 0.6]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(chance, depth - 1) for name in names},
        "required": required,
    }
    more = chance.random()
    if more < 0.6:
        schema["additionalProperties"] = False
    elif more < 0.9:
        schema["additionalProperties"] = random_schema(chance, 0)
    if len(required) == len(names) and more >= 0.6:
        schema["maxProperties"] = len(names) + chance.randint(0, 2)
    if required and chance.random() < 0.2:
        schema["minProperties"] = 1
    return schema


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randint(0, 2)
    return {
        "type": "array", "items": random_schema(chance, depth - 1),
        "minItems": least, "maxItems": least + chance.randint(0, 3), "uniqueItems": False,
    }  # fmt: skip


def _tuple(chance: random.Random, depth: int) -> dict[str, Any]:
    first = [random_schema(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    return {
        "type": "array", "prefixItems": first, "minItems": chance.randint(0, len(first)),
        "items": chance.choice([False, {"type": "null"}]), "maxItems": len(first) + 2,
    }  # fmt: skip


def _any_of(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(chance, depth - 1) for _ in range(chance.randint(1, 3))]}


def _all_of(chance: random.Random, _depth: int) -> dict[str, Any]:
    low = chance.randint(-20, 20)
    return {"type": "integer", "allOf": [{"minimum": low}, {"maximum": low + 9}]}


def _types(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": chance.sample(["null", "boolean", "integer"], 2), "minimum": 3, "maximum": 99}


def _ref(chance: random.Random, depth: int) -> dict[str, Any]:
    # a place of the whole schema: good_schema moves the definitions there
    return {"$defs": {"d": random_schema(chance, depth - 1)}, "$ref": "#/$defs/d"}


_MAKERS = {
    "string": _string, "integer": _integer, "number": _number, "simple": _simple,
    "pattern": _pattern, "enum": _enum, "const": _const, "format": _format, "object": _object,
    "array": _array, "tuple": _tuple, "anyOf": _any_of, "allOf": _all_of, "types": _types,
    "ref": _ref,
}  # fmt: skip


def with_definitions_at_the_top(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with every definition under a name of its own at the top."""
    found: dict[str, Any] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not isinstance(value, dict):
            return value
        if value.get("$ref") == "#/$defs/d":
            name = f"d{len(found)}"
            found[name] = None
            found[name] = moved(value["$defs"]["d"])
            return {"$ref": f"#/$defs/{name}"}
        return {key: moved(one) for key, one in value.items()}

    made = moved(schema)
    return {**made, "$defs": found} if found else made


@dataclass(frozen=True, slots=True)
class Drawn:
    """A text, and whether it was ended."""

    text: str
    finished: bool


class Dice:
    """Draws tokens by random logits, through the samplers of a run.

    What ends values is likelier than the rest, so that most texts come to an end.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._likelier = np.zeros(vocab.n_tokens, np.float32)
        for token in range(vocab.n_tokens):
            if vocab.is_end(token):
                self._likelier[token] = 6
            elif vocab.piece(token) in (b'"', b"}", b"]", b'"}', b'",', b","):
                self._likelier[token] = 4

    def draw(self, sampling: SamplingSettings, seed: int, most: int = 400) -> Drawn:
        """A text of at most this many tokens."""
        chance, vocab = np.random.default_rng(seed), self._vocab
        settings = LlamaFilter(sampling, vocab.n_tokens, vocab)
        data = b""
        try:
            settings.begin([])
            for _ in range(most):
                logits = chance.normal(0, 2, vocab.n_tokens).astype(np.float32) + self._likelier
                token = settings.distribution(logits).draw(chance.random())
                if vocab.is_end(token):
                    return Drawn(data.decode(), True)
                settings.accept(token)
                data += vocab.piece(token)
        finally:
            settings.close()
        return Drawn(data.decode("utf-8", "replace"), False)
