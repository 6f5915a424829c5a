"""What a model's first layer reads of its token embedding, as second moments to compensate it by.

An embedding is looked up, not multiplied, so it has no inputs. But the first layer multiplies what
was looked up: by a matrix W, after a norm that takes the mean away and scales each column by w. An
error E of the embedding then changes the results by E M, where M = (I - 11'/n) diag(w) W^T, up to
a factor per row. So the trace of E M M' E' is to the embedding what that of E H E' is to a matrix.

Goes in: a converted model. Comes out: M M', summed over the matrices of the first layer that read
the residual stream, in diagonal blocks. No text has a part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from infer_os.native.gguf_file import GgufHeader, GgufTensor
from infer_os.native.moments import Moments, block_widths

from .probing import decoded, stored_rows

EMBEDDING = "token_embd.weight"

_HEAD, _EMBEDDING_NORM = "output.weight", "token_embd_norm.weight"
_ATTENTION = ("attn_qkv", "attn_q", "attn_k", "attn_v")
_HELD_VALUES = 1 << 22


def embedding_moments(header: GgufHeader) -> Moments | None:
    """The second moments, or None: the embedding is the head too, or nothing reads it so.

    Args:
        header: of a GGUF file in any type that is decoded, q8_0 or finer.
    """
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if _HEAD not in tensors or EMBEDDING not in tensors:
        return None
    width = tensors[EMBEDDING].shape[0]
    widths = block_widths(width)
    edges = np.cumsum((0, *widths))
    blocks = [np.zeros((n, n)) for n in widths]
    n_rows = 0
    for norms, matrix in _readers(tensors):
        scales = [_values(header, tensors[name])[0] for name in norms]
        rows = stored_rows(header, matrix)
        step = max(1, _HELD_VALUES // width)
        for first in range(0, len(rows), step):
            values = decoded(rows[first : first + step], matrix.type.name).astype(np.float64)
            for scale in scales:
                values *= scale
                values -= values.mean(1, keepdims=True)
            for block, start, stop in zip(blocks, edges[:-1], edges[1:], strict=True):
                part = values[:, start:stop]
                block += part.T @ part
        n_rows += len(rows)
    if not n_rows:
        return None
    return Moments(EMBEDDING, tuple(block.astype(np.float32) for block in blocks), n_rows)


def _readers(tensors: Mapping[str, GgufTensor]) -> Iterator[tuple[list[str], GgufTensor]]:
    """The matrices of the first layer that read the embedding, and the norms before each.

    The norms are in the order in which an error of the results goes back through them.
    """
    width = tensors[EMBEDDING].shape[0]
    first = [_EMBEDDING_NORM] if _EMBEDDING_NORM in tensors else []
    attention, feed_forward = "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"
    # where one norm feeds both, the graph has no second one
    second = feed_forward if feed_forward in tensors else attention
    for part, norm in (*((part, attention) for part in _ATTENTION), ("ffn_up", second)):
        matrix = tensors.get(f"blk.0.{part}.weight")
        if matrix is not None and norm in tensors and matrix.shape[0] == width:
            yield [norm, *first], matrix


def _values(header: GgufHeader, tensor: GgufTensor) -> NDArray[np.float32]:
    return decoded(stored_rows(header, tensor), tensor.type.name)
