"""The shape of a model that is a file: its sizes, from a GGUF header."""

from __future__ import annotations

import math

from infer_os.models.graphs import Positions, graph_named, is_parallel, positions_of
from infer_os.models.rotation import ROTATION_KEY
from infer_os.models.shape import ModelShape, SizedTensor, WeightOption, weight_option
from infer_os.models.weight_types import RECIPES
from infer_os.native.attention_windows import read_windows
from infer_os.native.constraint import count_places
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.kv_state import kv_geometry

from ..kv.schedule import KvModel

_TEMPLATE_KEY, _TOKENS_KEY = "tokenizer.chat_template", "tokenizer.ggml.tokens"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_POSITIONS = "position_embd.weight"
_LOOKED_UP = (_EMBEDDING, _POSITIONS)
# tensors that a mixture leaves in types other than its name says
_MATRICES = ("ffn_up.weight", "ffn_down.weight", "attn_qkv.weight", "attn_output.weight")
#: llama.cpp's LLAMA_FTYPE numbers of mixtures, to the names of ``convert --type``.
_MIXTURES = {row.file_type: row.name for row in RECIPES.values() if row.is_mixture}


def header_shape(header: GgufHeader, *, constrained: bool = False) -> ModelShape:
    """The shape of a file's model; its only type is the file's own.

    ``constrained`` counts what a constraint needs of its tokens, which takes a second for 250,000.

    Raises:
        GgufError: a size in the header is not a number.
    """
    geometry = kv_geometry(header)
    n_embd = header.count("embedding_length", 0, low=0)
    windows = read_windows(header)
    stated = header.metadata.get(f"{header.architecture}.use_parallel_residual")
    return ModelShape(
        name=header.path.name,
        graph=header.architecture,
        n_layer=geometry.n_layer,
        n_embd=n_embd,
        n_head_kv=geometry.n_head_kv,
        head_dim=geometry.head_k,
        n_ff=header.count("feed_forward_length", 4 * n_embd, low=0),
        n_vocab=_vocabulary(header),
        n_ctx_train=header.count("context_length", 2048),
        parallel=is_parallel(header.architecture, stated),
        options=(_weights(header),),
        positions=header_positions(header),
        rotates=_rotates(header),
        is_file=True,
        has_template=bool(header.metadata.get(_TEMPLATE_KEY)),
        window=windows.size if windows else 0,
        n_places=count_places(header.metadata.get(_TOKENS_KEY, ())) if constrained else 0,
    )


def header_positions(header: GgufHeader) -> Positions | None:
    """How a file's model knows where a token stands."""
    return positions_of(header.architecture, any(t.name == _POSITIONS for t in header.tensors))


def header_kv_model(header: GgufHeader, n_threads: int) -> KvModel:
    """What a KV schedule needs to know of a file's model.

    Raises:
        GgufError: a size in the header that is no number.
    """
    return KvModel(
        kv_geometry(header),
        rotates=_rotates(header),
        flash_attention=graph_named(header.architecture).flash_attention,
        n_threads=n_threads,
        windows=read_windows(header) is not None,
    )


def _rotates(header: GgufHeader) -> bool:
    """Whether llama.cpp may rotate a quantized cache; the weights may do that themselves."""
    return ROTATION_KEY not in header.metadata


def _vocabulary(header: GgufHeader) -> int:
    """Rows of logits: as many as the embedding has."""
    rows = (t.shape[1] for t in header.tensors if t.name == _EMBEDDING and len(t.shape) > 1)
    return next(rows, 0)


def _weights(header: GgufHeader) -> WeightOption:
    tied = all(tensor.name != _HEAD for tensor in header.tensors)
    lookups = _LOOKED_UP[1:] if tied else _LOOKED_UP
    return weight_option(
        file_type(header),
        (
            SizedTensor(t.type.name, t.n_bytes, t.name in lookups, len(t.shape) > 1)
            for t in header.tensors
        ),
    )


def file_type(header: GgufHeader) -> str:
    """The name of a file's type: its mixture's, else that of most values of its matrices."""
    mixture = header.metadata.get("general.file_type")
    if isinstance(mixture, int) and mixture in _MIXTURES:
        return _MIXTURES[mixture]
    counts: dict[str, int] = {}
    for tensor in header.tensors:
        if tensor.name.endswith(_MATRICES):
            name = tensor.type.name
            counts[name] = counts.get(name, 0) + math.prod(tensor.shape)
    return max(counts, key=lambda name: counts[name], default="f32")
