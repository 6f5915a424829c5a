"""Grammars that a text must follow: GBNF as llama.cpp reads it, and JSON schemas made into it."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import llama_cpp
from llama_cpp.llama_grammar import json_schema_to_gbnf

from .errors import GrammarError
from .logs import forget_complaints, last_complaint, route_logs

_ROOT = "root"


def new_grammar(text: str, vocab: Any) -> Any:
    """A ``llama_sampler *`` that keeps to a grammar; the caller frees it.

    Args:
        text: GBNF, https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
        vocab: a ``llama_vocab *``.

    Raises:
        GrammarError: llama.cpp cannot read it.
    """
    if not text.strip():  # which llama.cpp would take for no grammar at all
        raise GrammarError("the grammar cannot be used: it is empty, without a rule named root")
    forget_complaints()
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), _ROOT.encode())
    if not sampler:
        reason = last_complaint() or f"it has no rule named {_ROOT}"
        raise GrammarError(f"the grammar cannot be used: {reason}")
    return sampler


def check_grammar(text: str) -> None:
    """See that llama.cpp can read a grammar; no model is needed.

    Raises:
        GrammarError: it cannot.
    """
    route_logs()
    # the parser writes what it dislikes to the process's stderr, and only "failed" to the log
    with tempfile.TemporaryFile() as spoken:
        saved = os.dup(2)
        os.dup2(spoken.fileno(), 2)
        try:
            sampler = new_grammar(text, None)
        except GrammarError as error:
            spoken.seek(0)
            said = spoken.read().decode("utf-8", "replace").strip().splitlines()
            raise GrammarError(f"{error} ({said[0]})" if said else str(error)) from None
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    llama_cpp.llama_sampler_free(sampler)


def grammar_of_schema(text: str) -> str:
    """The GBNF grammar of a JSON schema, by llama-cpp-python's converter.

    Raises:
        GrammarError: it is no JSON, or uses what the converter does not know.
    """
    try:
        json.loads(text)
    except ValueError as error:
        raise GrammarError(f"the JSON schema is no JSON: {error}") from None
    try:
        grammar = json_schema_to_gbnf(text)
    # the converter asserts, looks keys up and calls whatever it finds: any error is the schema's
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise GrammarError(f"the JSON schema cannot become a grammar: {reason}") from None
    return str(grammar)
