"""Compare a converted model's logits with stored ones of Hugging Face in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import AdapterSource
from infer_os.native.attention_windows import read_windows
from infer_os.native.context import Context, ContextParams
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel


@dataclass(frozen=True)
class Comparison:
    """How far two sets of logits are apart over ``n_tokens`` positions.

    ``largest_gap``: where the argmax differs, how much likelier the expected one was, in nats.
    """

    n_tokens: int
    kl: float
    argmax_equal: int
    max_difference: float
    largest_gap: float = 0.0


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log probabilities of each row."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


def compare_logits(expected: NDArray[np.float32], got: NDArray[np.float32]) -> Comparison:
    """Mean KL(expected || got), equal argmax and largest difference."""
    p, q = log_softmax(expected), log_softmax(got)
    other = np.take_along_axis(p, got.argmax(-1)[:, None], -1)[:, 0]
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    return Comparison(
        len(expected),
        float(kl.mean()),
        int((expected.argmax(-1) == got.argmax(-1)).sum()),
        float(np.abs(expected - got).max()),
        float((p.max(-1) - other).max()),
    )


def has_windows(gguf: Path) -> bool:
    """Whether some layers see only a window, which only our kernels compute."""
    return read_windows(read_gguf_header(gguf)) is not None


def all_logits(
    gguf: Path, tokens: list[int], type_k: str = "f16", type_v: str = "f16"
) -> NDArray[np.float32]:
    """Logits after every token, (n_tokens, n_vocab), in one batch.

    With llama.cpp's own kernels, but for layers with windows, which only ours compute.
    """
    with LlamaModel(gguf, native=has_windows(gguf)) as model:
        params = ContextParams(
            n_ctx=max(64, len(tokens)), n_threads=1, n_batch=len(tokens), n_outputs_max=len(tokens),
            type_k=type_k, type_v=type_v,
        )  # fmt: skip
        with Context(model, params) as context:
            context.decode(tokens, 0, outputs=len(tokens))
            return np.stack([context.logits(i).copy() for i in range(len(tokens))])


def compare_with_reference(folder: Path, kind: str, gguf: Path) -> Comparison:
    """Convert a reference checkpoint to ``gguf`` and compare its logits with the stored ones."""
    convert(ConvertSettings(folder, gguf, kind))
    tokens = [int(t) for t in np.load(folder / "tokens.npy")]
    return compare_logits(np.load(folder / "logits.npy"), all_logits(gguf, tokens))


def compare_with_adapter(
    base: Path, adapter: Path, kind: str, gguf: Path, **settings: Any
) -> Comparison:
    """Convert a reference checkpoint with a LoRA adapter; compare with PEFT's merged logits."""
    source = AdapterSource(adapter, 1.0, str(adapter))
    convert(ConvertSettings(base, gguf, kind, adapters=(source,), **settings))
    tokens = [int(t) for t in np.load(base / "tokens.npy")]
    return compare_logits(np.load(adapter / "logits.npy"), all_logits(gguf, tokens))
