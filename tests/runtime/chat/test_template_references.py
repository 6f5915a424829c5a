"""Chat templates in the manner of published ones, against what transformers wrote of them.

tests/reference/check_templates.py stores that, and compares live.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_templates import CONVERSATIONS, TEMPLATES, checkpoint_folder, gguf_of, written
from helpers import REPOSITORY

from infer_os.native.model import LlamaModel

WANTED = json.loads(
    (REPOSITORY / "tests/reference/chat_templates.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = checkpoint_folder(tmp_path_factory.mktemp("templates") / "checkpoint")
    with LlamaModel(gguf_of(folder), vocab_only=True) as model:
        yield model.vocab


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("key", CONVERSATIONS)
def test_text_and_tokens_are_those_of_transformers(vocab: Any, name: str, key: str) -> None:
    text, tokens = WANTED[name][key]
    assert written(vocab, TEMPLATES[name], CONVERSATIONS[key]) == (text, tokens)


def test_every_template_is_stored() -> None:
    assert list(WANTED) == list(TEMPLATES)
    assert len(TEMPLATES) >= 20
