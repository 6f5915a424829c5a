from __future__ import annotations

import json

import pytest
from helpers import Converter

from infer_os.native.errors import GrammarError
from infer_os.native.grammar import check_grammar, compiled, grammar_of_schema
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import complete
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('root ::= "a', "unexpected end"),
        ('other ::= "a"', "root"),
        ('root ::= root "a"', "never ends"),
        ("root ::= missing", "root names missing, which is not a rule"),
        ("", "root"),
    ],
)
def test_a_bad_grammar_says_why(text: str, complaint: str) -> None:
    with pytest.raises(GrammarError, match=complaint) as caught:
        check_grammar(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("(", "unclosed group, at character 1"),
        ("日本(", "unclosed group, at character 3"),
        ("error: (", "unclosed group, at character 8"),
        ("a\nb(", "unclosed group"),
        ("a{3,2}", "invalid repetition count range, the start must be <= the end, at character 2"),
        (r"\bword", "word boundaries are not supported"),
        ("(?=a)", "look-around, including look-ahead and look-behind, is not supported, at "
                  "character 1"),
    ],
)  # fmt: skip
def test_a_bad_expression_says_what_and_where(expression: str, complaint: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compiled("regex", expression)
    assert str(caught.value) == f"the regular expression: {complaint}"
    schema = {"properties": {"a": {"type": "string", "pattern": expression}}}
    with pytest.raises(GrammarError) as caught:
        compiled("json_schema", json.dumps(schema))
    assert str(caught.value) == f"the JSON schema, at /properties/a: {complaint}"


def test_a_good_grammar_passes_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    check_grammar('root ::= "a" | "b"')
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["no json", '{"type": "wrong"}', "[1]", '{"$ref": "#/no/such"}'])
def test_a_bad_schema_says_why(text: str) -> None:
    with pytest.raises(GrammarError, match="JSON schema"):
        grammar_of_schema(text)


@pytest.mark.parametrize("seed", range(5))
def test_a_text_follows_its_grammar(seed: int, engine: LlamaEngine) -> None:
    # the repetition penalty counts the prompt, which the grammar must not see
    sampling = SamplingSettings(
        2.0, repeat_penalty=1.3, seed=seed, grammar='root ::= ("ab" | "c") [xyz] "."'
    )
    done = complete(engine, engine.vocab.tokenize("abc abc"), sampling, StopSettings(20))
    assert done.text in {f"{a}{b}." for a in ("ab", "c") for b in "xyz"}
    assert done.finish_reason.value == "end"


def test_a_text_follows_a_schema(converted: Converter) -> None:
    schema = {
        "type": "object", "additionalProperties": False, "required": ["a", "b"],
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
    }  # fmt: skip
    grammar = grammar_of_schema(json.dumps(schema))
    with LlamaEngine(converted(), EngineSettings(context=256, threads=1)) as engine:
        sampling = SamplingSettings(seed=1, grammar=grammar)
        done = complete(engine, engine.vocab.tokenize("x"), sampling, StopSettings(200))
    value = json.loads(done.text)
    assert isinstance(value["a"], bool) and value["b"] in ("x", "y") and len(value) == 2
