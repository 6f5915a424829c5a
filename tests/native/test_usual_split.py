"""A file that does not name its split gives the tokens of one that does."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_parts import STRING, GgufParts, Key
from helpers import REFERENCES, Converter

from infer_os.native.model import LlamaModel
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.settings import EngineSettings

#: One folder for each graph; that of StarCoder's was made with GPT-2's split.
FOLDERS = {path.name: path for path in REFERENCES if path.name != "bigcode"}
TEXT = "It's 12345 (or 678), x+=1;  they've [gone]... Über東京  \n\n  end's ١٢"
KEY = "tokenizer.ggml.pre"


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("value", [None, ""])
def test_the_split_of_the_graph(
    converted: Converter, tmp_path: Path, name: str, value: str | None
) -> None:
    whole = converted(FOLDERS[name])
    parts = GgufParts.read(whole)
    if value is None:
        del parts.keys[KEY]
    else:
        parts.keys[KEY].value = value
    path = parts.write(tmp_path / "no-split.gguf")
    with LlamaModel(whole) as model, LlamaModel(path) as other:
        assert model.notes == ()
        assert len(other.notes) == 1
        assert KEY in other.notes[0]
        tokens = model.vocab.tokenize(TEXT)
        assert other.vocab.tokenize(TEXT) == tokens
    # llama.cpp's own choice would be another
    parts.keys[KEY] = Key(STRING, "default")
    with LlamaModel(parts.write(tmp_path / "default.gguf")) as model:
        assert model.vocab.tokenize(TEXT) != tokens
        assert model.notes == ()


def test_an_engine_says_so(converted: Converter, tmp_path: Path) -> None:
    parts = GgufParts.read(converted())
    del parts.keys[KEY]
    path = parts.write(tmp_path / "no-split.gguf")
    with LlamaEngine(path, EngineSettings(context=64, threads=1)) as engine:
        assert any("split as gpt-2" in note for note in engine.info.notes)
