"""Check a file that was just written: its header, its bytes, and that llama.cpp can run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import NativeError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel

from .conversion_plan import ConversionPlan, Job
from .errors import VerifyError
from .gguf_writer import GgufOutput

_N_TOKENS = 8


def verify_header(path: Path, plan: ConversionPlan) -> None:
    """Compare every tensor's name, shape and type with the plan.

    Raises:
        VerifyError: they differ, or the header cannot be read.
    """
    try:
        header = read_gguf_header(path)
    except NativeError as error:
        raise VerifyError(f"the written file does not read back: {error}") from error
    found = [(t.name, t.shape[::-1], t.type.name) for t in header.tensors]
    wanted = [(t.rule.target, t.rule.shape, t.type.name) for t in plan.tensors]
    if found != wanted:
        pairs = (pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1])
        first = next(pairs, (f"{len(found)} tensors", f"{len(wanted)} tensors"))
        raise VerifyError(f"the written file has {first[0]}, but {first[1]} was planned")


def verify_job(
    output: GgufOutput, job: Job, n_bytes: int, blocks: Iterator[NDArray[np.uint8]]
) -> int:
    """Compare the first and the last block of a part with those in the file.

    Args:
        output: the written file.
        job: the part.
        n_bytes: its bytes in the file.
        blocks: the first block, quantized again, and the last if there is another.

    Returns:
        How many blocks were compared.

    Raises:
        VerifyError: they differ.
    """
    count = 0
    for count, data in enumerate(blocks, 1):
        at = job.at if count == 1 else job.at + n_bytes - data.nbytes
        if output.read(job.tensor, at, data.nbytes) != data.tobytes():
            raise VerifyError(
                f"tensor {job.tensor.rule.target!r}: the written bytes from {at} on differ from "
                "its source's"
            )
    return count


def verify_logits(path: Path, n_threads: int) -> int:
    """Let llama.cpp load the file and compute a few tokens.

    Returns:
        How many tokens it computed.

    Raises:
        VerifyError: it does not load, or its logits are not finite, or all the same.
    """
    try:
        with LlamaModel(path) as model:
            most = max(model.vocab.n_normal, 1)
            tokens = [most * i // _N_TOKENS for i in range(_N_TOKENS)]
            params = ContextParams(min(64, model.n_ctx_train), n_threads)
            tokens = tokens[: params.n_ctx]
            with Context(model, params) as context:
                context.decode(tokens, 0)
                logits = context.logits().copy()
    except NativeError as error:
        raise VerifyError(f"llama.cpp does not run the written file: {error}") from error
    if not np.isfinite(logits).all():
        raise VerifyError("the written file computes logits that are NaN or infinite")
    if np.ptp(logits) == 0:
        raise VerifyError("the written file computes the same logit for every token")
    return len(tokens)
