"""LoRA adapters of a loaded model: files of llama.cpp's format, which contexts compute with.

A file is checked before llama.cpp sees it: ``llama_adapter_lora_init`` looks at names and at some
shapes, and what it takes otherwise ends the process when the graph is built, or is not used at all
(``build_lora_mm`` and ``build_inp_embd`` of src/llama-graph.cpp).
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from infer_os.models.graphs import graph_named

from .errors import GgufError, ModelLoadError
from .gguf_file import GgufHeader, GgufTensor, read_gguf_header
from .logs import forget_complaints, last_complaint

#: Metadata key of what identifies an adapter: infer-os writes it, and loads no file without it.
DIGEST_KEY = "inferos.adapter.sha256"
#: Ranks are multiples of this in the files that infer-os writes: the rows of our float products.
PADDED_RANK = 16
#: The tensor of which llama.cpp looks rows up; it multiplies with the others.
EMBEDDING = "token_embd.weight"
_HEAD = "output.weight"
_MULTIPLIED = re.compile(
    r"blk\.\d+\.(attn_(qkv|q|k|v|output)|ffn_(up|down))\.weight|output\.weight"
)
_TYPES = ("f32", "f16", "bf16")
#: Columns of its matrices that an adapter may have.
LARGEST_RANK = 1 << 12
_KINDS = (".lora_a", ".lora_b")


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter of a model, which frees it: llama.cpp's pointer, and how strongly it counts.

    ``identity`` is equal for adapters that compute the same.
    """

    pointer: Any
    scale: float
    identity: str
    n_bytes: int


def load_adapter(model: Any, header: GgufHeader, path: Path, scale: float) -> LoraAdapter:
    """Load an adapter, before any context of the model is made.

    Args:
        model: the ``llama_model *``, which frees it.
        header: the model's.
        path: the adapter's file, which infer-os has written.
        scale: how strongly it counts.

    Raises:
        GgufError: no adapter of this model, or a file that infer-os has not written.
        ModelLoadError: llama.cpp refuses it.
    """
    adapter = read_gguf_header(path)
    check_adapter(adapter, header)
    digest = adapter.metadata.get(DIGEST_KEY)
    if not isinstance(digest, str):
        raise GgufError(f"{path}: an adapter that infer-os did not write")
    forget_complaints()
    pointer = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not pointer:
        reason = last_complaint() or "not enough memory?"
        raise ModelLoadError(f"{path}: llama.cpp cannot load this adapter: {reason}")
    return LoraAdapter(pointer, scale, f"{digest}:{scale!r}", adapter.weight_bytes)


def set_adapter(context: Any, adapter: LoraAdapter | None) -> None:
    """Let a ``llama_context *`` compute with this adapter from now on, or with none."""
    if adapter is None:
        llama_cpp.llama_set_adapters_lora(context, None, 0, None)
        return
    pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter.pointer)
    scales = (ctypes.c_float * 1)(adapter.scale)
    llama_cpp.llama_set_adapters_lora(context, pointers, 1, scales)


def check_adapter(adapter: GgufHeader, model: GgufHeader) -> None:
    """Refuse an adapter that llama.cpp would end the process on, or that it would not compute.

    Args:
        adapter: the header of its file.
        model: that of the model's.

    Raises:
        GgufError: see above.
    """
    metadata = adapter.metadata
    kind = metadata.get("general.type"), metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        raise _bad(adapter, "a GGUF file, but not one of a LoRA adapter")
    if adapter.architecture != model.architecture:
        raise _bad(
            adapter,
            f"an adapter for {adapter.architecture!r}; {model.path.name} is {model.architecture!r}",
        )
    if not graph_named(model.architecture).is_own:
        raise _bad(adapter, f"adapters of {model.architecture!r} are not supported")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not 0 <= alpha < 1e9:
        raise _bad(adapter, f"'adapter.lora.alpha' is {alpha!r}; expected a number from 0")
    for key in metadata:
        if key.startswith("adapter.alora"):
            raise _bad(adapter, f"{key!r}: an adapter that waits for certain tokens")
    if not adapter.tensors:
        raise _bad(adapter, "an adapter without matrices")
    pairs: dict[str, dict[str, GgufTensor]] = {}
    for tensor in adapter.tensors:
        name, suffix = tensor.name[: -len(_KINDS[0])], tensor.name[-len(_KINDS[0]) :]
        if suffix not in _KINDS:
            raise _bad(adapter, f"the tensor {tensor.name!r}: not a matrix of plain LoRA")
        pairs.setdefault(name, {})[suffix] = tensor
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for name, pair in pairs.items():
        _check_pair(adapter, name, pair, tensors)


def _check_pair(
    adapter: GgufHeader, name: str, pair: dict[str, GgufTensor], tensors: dict[str, GgufTensor]
) -> None:
    target = tensors.get(name)
    if target is None or len(target.shape) != 2:
        raise _bad(adapter, f"adds to {name!r}, which the model does not have as a matrix")
    if not _MULTIPLIED.fullmatch(name) and not (name == EMBEDDING and _HEAD in tensors):
        why = ", where the head is the embedding" if name == EMBEDDING else ""
        raise _bad(adapter, f"adds to {name!r}, to which llama.cpp adds no adapter{why}")
    if len(pair) != 2:
        raise _bad(adapter, f"has only one of the two matrices for {name!r}")
    for tensor in pair.values():
        if tensor.type.name not in _TYPES or len(tensor.shape) != 2:
            raise _bad(
                adapter,
                f"the tensor {tensor.name!r} is {tensor.type.name} of shape {tensor.shape}; "
                f"expected a matrix of {', '.join(_TYPES)}",
            )
    a, b = pair[_KINDS[0]].shape, pair[_KINDS[1]].shape
    n_in, n_out = target.shape
    rank = b[0]
    wanted = ((rank, n_out), (rank, n_in)) if name == EMBEDDING else ((n_in, rank), (rank, n_out))
    if (a, b) != wanted or rank > LARGEST_RANK:
        raise _bad(
            adapter,
            f"matrices of shape {a} and {b} for {name!r}, which has {target.shape}; expected "
            f"{wanted[0]} and {wanted[1]}",
        )


def _bad(adapter: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{adapter.path}: {what}")
