"""Files of other graphs are loaded in a child process first: an assertion becomes an error."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from gguf_parts import GgufParts, Key, Tensor
from helpers import REFERENCES, Converter

from infer_os.native import trial
from infer_os.native.errors import ModelLoadError
from infer_os.native.model import LlamaModel


@pytest.fixture
def codeshell(converted: Converter) -> GgufParts:
    """A tiny model of a graph that infer-os does not convert to, made of a GPT-2's tensors."""
    gpt2 = next(path for path in REFERENCES if path.name == "gpt2")
    parts = GgufParts.read(converted(gpt2))
    renamed: dict[str, Key] = {}
    for name, key in parts.keys.items():
        renamed[f"codeshell.{name[5:]}" if name.startswith("gpt2.") else name] = key
    renamed["general.architecture"] = Key(8, "codeshell")
    tensors = [tensor for tensor in parts.tensors if tensor.name != "position_embd.weight"]
    # the head stands for the embedding, not the other way round
    for tensor in tensors:
        tensor.name = tensor.name.replace("token_embd", "output")
    return GgufParts(renamed, tensors)


def test_another_graph_loads(codeshell: GgufParts, tmp_path: Path) -> None:
    with LlamaModel(codeshell.write(tmp_path / "good.gguf")) as model:
        assert model.vocab.tokenize("a b")


def _expert(parts: GgufParts) -> None:
    parts.keys["codeshell.expert_used_count"] = Key(4, 3)


def _norm(parts: GgufParts) -> None:
    parts.tensor("output_norm.weight").kind = 1


def _layers(parts: GgufParts) -> None:
    parts.keys["codeshell.block_count"] = Key(4, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [(_expert, r"GGML_ASSERT\(n_expert_used_max"), (_norm, "llama.cpp cannot run it"),
     (_layers, "GGML_ASSERT")],
)  # fmt: skip
def test_an_assertion_is_an_error(
    change: Any, words: str, codeshell: GgufParts, tmp_path: Path
) -> None:
    change(codeshell)
    path = codeshell.write(tmp_path / "bad.gguf")
    with pytest.raises(ModelLoadError, match=words) as caught:
        LlamaModel(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_llama_cpp_refuses_keeps_its_reason(codeshell: GgufParts, tmp_path: Path) -> None:
    codeshell.tensors = [
        Tensor("odd", t.shape, t.kind, t.data) if t.name == "output_norm.bias" else t
        for t in codeshell.tensors
    ]
    with pytest.raises(ModelLoadError, match=r"output_norm\.bias"):
        LlamaModel(codeshell.write(tmp_path / "renamed.gguf"))


def test_a_file_is_tried_once(
    codeshell: GgufParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    run = subprocess.run
    monkeypatch.setattr(
        trial.subprocess, "run", lambda *args, **more: calls.append(args) or run(*args, **more)
    )
    path = codeshell.write(tmp_path / "good.gguf")
    for _ in range(2):
        LlamaModel(path).close()
    assert len(calls) == 1


def test_our_own_graphs_need_no_child(
    converted: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.subprocess, "run", None)
    LlamaModel(converted()).close()
