"""Create a llama.cpp context: what the owners of one sequence and of many share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import llama_cpp

from .attention_windows import read_windows
from .backend import exact_context, kernels_for, own_graph, own_kernels
from .cpu import possible_threads
from .errors import ModelLoadError
from .ggml_types import ggml_type_named
from .interrupt import abort_callback
from .kv_state import kv_geometry
from .logs import forget_complaints, last_complaint
from .lora_adapter import LoraAdapter, set_adapter
from .model import LlamaModel
from .owner import Owner

_SWITCH = "LLAMA_ATTN_ROT_DISABLE"


@dataclass(frozen=True, slots=True)
class ContextSizes:
    """What a context is allocated for.

    ``n_ctx`` tokens in all sequences together, ``n_batch`` rows at once, ``n_outputs`` of them with
    logits. ``unified``: sequences share their cells. Without ``rotate`` llama.cpp does not rotate
    quantized cache rows. ``by_column``: a few tokens are computed as single ones are, see
    :class:`~.backend.OwnKernels`.
    """

    n_ctx: int
    n_batch: int
    n_seq: int
    n_outputs: int
    n_threads: int
    type_k: str
    type_v: str
    unified: bool
    rotate: bool
    by_column: bool


class Observer(Protocol):
    """Sees the nodes of every graph that a context computes."""

    @property
    def callback(self) -> Any:
        """A ``ggml_backend_sched_eval_callback``."""

    @property
    def user_data(self) -> int:
        """The pointer that the callback gets."""


@contextmanager
def rotation(wanted: bool) -> Iterator[bool]:
    """Create a context inside; yields whether it rotates (a user may have set the switch)."""
    before = os.environ.get(_SWITCH)
    # llama.cpp reads it with atoi
    already_off = re.match(r"\s*[+-]?0*[1-9]", before or "") is not None
    if not wanted:
        os.environ[_SWITCH] = "1"
    try:
        yield wanted and not already_off
    finally:
        if not wanted:
            os.environ.pop(_SWITCH)
            if before is not None:
                os.environ[_SWITCH] = before


def new_context(
    model: LlamaModel, sizes: ContextSizes, what: str, observer: Observer | None = None
) -> tuple[Any, bool]:
    """A ``llama_context *``, and whether it rotates.

    Args:
        model: its weights; it must outlive the context.
        sizes: what is allocated.
        what: its name in messages, as in "a context of 512 tokens".
        observer: sees the nodes that are computed; it must outlive the context too.

    Raises:
        ModelLoadError: llama.cpp cannot create it (usually: not enough memory), or the system does
            not allow this many threads.
    """
    threads = possible_threads(sizes.n_threads)
    if threads < sizes.n_threads:
        raise ModelLoadError(
            f"{sizes.n_threads} threads: the system allows this process {threads}; take fewer "
            "(--threads), or raise its limits (ulimit -u, ulimit -v, a container's pids.max)"
        )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = sizes.n_ctx
    params.n_batch = params.n_ubatch = sizes.n_batch
    params.n_seq_max = sizes.n_seq
    params.kv_unified = sizes.unified
    params.n_outputs_max = max(sizes.n_outputs, sizes.n_seq)
    params.n_threads = params.n_threads_batch = sizes.n_threads
    params.type_k = ggml_type_named(sizes.type_k).id
    params.type_v = ggml_type_named(sizes.type_v).id
    params.abort_callback = abort_callback()
    params.no_perf = True
    if observer is not None:
        params.cb_eval = observer.callback
        params.cb_eval_user_data = observer.user_data
    forget_complaints()
    graph = own_graph(model.kernels, model.header, {sizes.type_k, sizes.type_v})
    kernels = kernels_for(
        model.kernels, params, by_column=sizes.by_column, graph=graph,
        windows=_windows(model, sizes),
    )  # fmt: skip
    with rotation(sizes.rotate) as rotates, kernels:
        pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    if not pointer:
        reason = last_complaint() or "not enough memory?"
        raise ModelLoadError(f"{model.path}: llama.cpp cannot create {what}: {reason}")
    return pointer, rotates


def _windows(model: LlamaModel, sizes: ContextSizes) -> list[int]:
    """What each layer sees, if some have windows.

    Raises:
        ModelLoadError: the windows of these layers are not computed at this size or in this cache.
    """
    if model.windows is not None:
        own = own_kernels(model.kernels, kv_geometry(model.header))
        if own is None or not own.caches.issuperset({sizes.type_k, sizes.type_v}):
            raise ModelLoadError(
                f"{model.path}: a cache of {sizes.type_k} and {sizes.type_v}: the windows of its "
                "layers are computed with f16, q8_0 and q4_0 alone"
            )
        return model.windows.by_layer(kv_geometry(model.header).n_layer)
    n_ctx = sizes.n_ctx if sizes.unified else sizes.n_ctx // sizes.n_seq
    if read_windows(model.header) is not None:
        exact = exact_context(model.kernels, model.header)
        if n_ctx > exact:
            raise ModelLoadError(
                f"{model.path}: a context of {n_ctx} tokens: beyond {exact} the windows of its "
                "layers are not computed here"
            )
    return []


class ContextOwner(Owner):
    """Owns a ``llama_context *``: what its owners of one sequence and of many have in common."""

    def __init__(
        self, model: LlamaModel, sizes: ContextSizes, what: str, observer: Observer | None = None
    ) -> None:
        """Allocate, see :func:`new_context`."""
        self._pointer, self.rotates = new_context(model, sizes, what, observer)
        self._model = model
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._n_vocab = model.vocab.n_tokens
        self._n_threads = sizes.n_threads
        self._adapter: LoraAdapter | None = None
        self.n_batch = int(llama_cpp.llama_n_batch(self._pointer))

    @property
    def pointer(self) -> Any:
        """The ``llama_context *``."""
        return self._pointer

    def use_threads(self, n_threads: int) -> None:
        """Compute with this many threads from now on."""
        if n_threads != self._n_threads:
            llama_cpp.llama_set_n_threads(self._pointer, n_threads, n_threads)
            self._n_threads = n_threads

    def use_adapter(self, name: str) -> None:
        """Compute with this adapter of the model from now on; "" is none.

        What the cache holds stays: rows of different adapters are to be kept apart by the caller.
        The next decode plans its buffers again, which takes milliseconds.
        """
        adapter = self._model.adapters[name] if name else None
        if adapter is not self._adapter:
            set_adapter(self._pointer, adapter)
            self._adapter = adapter

    def close(self) -> None:
        """Free the context."""
        if self._pointer:
            llama_cpp.llama_free(self._pointer)
            self._pointer = None
