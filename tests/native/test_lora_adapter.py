"""Adapters' files before llama.cpp sees them: each fault is one line, and not an abort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_files import adapter_file, random_adapter
from gguf_parts import STRING, GgufParts, Key, Tensor
from helpers import BUNDLED, TESTS, Converter

from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.lora_adapter import DIGEST_KEY, check_adapter, load_adapter
from infer_os.native.model import LlamaModel

GPTJ = TESTS / "reference/gptj"
_A, _B = "blk.0.attn_output.weight.lora_a", "blk.0.attn_output.weight.lora_b"


@pytest.fixture
def model(converted: Converter) -> Path:
    return converted(GPTJ, "q8_0")


@pytest.fixture
def parts(model: Path, tmp_path: Path) -> GgufParts:
    file = adapter_file(TESTS / "reference/adapters/gptj", model, tmp_path / "good.gguf")
    check_adapter(read_gguf_header(file), read_gguf_header(model))
    return GgufParts.read(file)


def _rename(parts: GgufParts, old: str, new: str) -> None:
    parts.tensor(old).name = new


def _reshape(parts: GgufParts, name: str, shape: list[int]) -> None:
    parts.tensor(name).shape = shape


def _drop(parts: GgufParts, name: str) -> None:
    parts.tensors.remove(parts.tensor(name))


def _norm(parts: GgufParts) -> None:
    """llama.cpp takes these and does not use them."""
    parts.tensors.append(Tensor("blk.0.attn_norm.weight", [64], 0, b"\0"))


FAULTS = {
    "a model": (lambda p: p.keys.pop("general.type"), "not one of a LoRA adapter"),
    "control vector": (lambda p: p.keys["adapter.type"].__setattr__("value", "cvec"), "not one of"),
    "graph": (
        lambda p: p.keys["general.architecture"].__setattr__("value", "bloom"),
        "an adapter for 'bloom'",
    ),
    "alpha": (
        lambda p: p.keys["adapter.lora.alpha"].__setattr__("value", float("nan")), "lora.alpha"
    ),
    "alora": (
        lambda p: p.keys.update({"adapter.alora.invocation_tokens": Key(4, [1], is_array=True)}),
        "waits for certain tokens",
    ),
    "alpha's type": (
        lambda p: p.keys.update({"adapter.lora.alpha": Key(STRING, "1")}), "expected a number"
    ),
    "empty": (lambda p: p.tensors.clear(), "without matrices"),
    "norm": (_norm, "not a matrix of plain LoRA"),
    "suffix": (lambda p: _rename(p, _A, "blk.0.attn_output.weight.dora"), "plain LoRA"),
    "no such tensor": (lambda p: _rename(p, _A, _A.replace("blk.0", "blk.9")), "does not have"),
    "a vector": (
        lambda p: _rename(p, _A, "blk.0.attn_norm.weight.lora_a"), "does not have as a matrix"
    ),
    "one alone": (lambda p: _drop(p, _B), "only one of the two"),
    "rank": (lambda p: _reshape(p, _A, [64, 8]), "expected (64, 16) and (16, 64)"),
    "columns": (lambda p: _reshape(p, _A, [32, 16]), "matrices of shape (32, 16)"),
    "rows": (lambda p: _reshape(p, _B, [16, 63]), "matrices of shape"),
    "dimensions": (lambda p: _reshape(p, _B, [16, 64, 1]), "expected a matrix"),
    "type": (lambda p: p.tensor(_B).__setattr__("kind", 26), "expected a matrix of f32"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, model: Path, parts: GgufParts, tmp_path: Path) -> None:
    change, said = FAULTS[name]
    change(parts)  # type: ignore[no-untyped-call]
    file = parts.write(tmp_path / "bad.gguf")
    with LlamaModel(model) as loaded, pytest.raises(GgufError) as raised:
        load_adapter(loaded.pointer, loaded.header, file, 1.0)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_tied_embedding(converted: Converter, tmp_path: Path) -> None:
    """llama.cpp would multiply with what it looks up: it asserts that shapes agree."""
    model = converted(TESTS / "reference/gpt2", "q8_0")
    header = read_gguf_header(model)
    n_embd, n_vocab = next(t.shape for t in header.tensors if t.name == "token_embd.weight")
    keys = {
        "general.architecture": Key(STRING, "gpt2"), "general.type": Key(STRING, "adapter"),
        "adapter.type": Key(STRING, "lora"), DIGEST_KEY: Key(STRING, "0"),
    }  # fmt: skip
    pair = [
        Tensor("token_embd.weight.lora_a", [16, n_vocab], 0, b"\0"),
        Tensor("token_embd.weight.lora_b", [16, n_embd], 0, b"\0"),
    ]
    file = GgufParts(keys, pair).write(tmp_path / "a.gguf")
    with pytest.raises(GgufError, match="where the head is the embedding"):
        check_adapter(read_gguf_header(file), header)


def test_what_infer_os_did_not_write(model: Path, parts: GgufParts, tmp_path: Path) -> None:
    del parts.keys[DIGEST_KEY]
    file = parts.write(tmp_path / "a.gguf")
    with LlamaModel(model) as loaded, pytest.raises(GgufError, match="did not write"):
        load_adapter(loaded.pointer, loaded.header, file, 1.0)


def test_our_kernels_take_all_of_it(converted: Converter, tmp_path: Path) -> None:
    """A token alone and among others has the same bits, which llama.cpp's products do not give."""
    base = next(folder for folder in BUNDLED if folder.name == "austen-6m")
    model = converted(base, "q8_0")
    file = adapter_file(random_adapter(base, tmp_path / "adapter"), model, tmp_path / "a.gguf")
    tokens = list(range(40, 60))
    for native in (True, False):
        with LlamaModel(model, native=native) as loaded:
            loaded.adapters["one"] = load_adapter(loaded.pointer, loaded.header, file, 1.0)
            params = ContextParams(n_ctx=64, n_threads=2, n_outputs_max=len(tokens))
            with Context(loaded, params) as context:
                context.use_adapter("one")
                context.decode(tokens, 0, outputs=len(tokens))
                together = context.logits_rows(len(tokens)).copy()
                context.trim(0)
                alone = []
                for position, token in enumerate(tokens):
                    context.decode_one(token, position)
                    alone.append(context.logits().copy())
        assert np.array_equal(together, np.stack(alone)) == native
