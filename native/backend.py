"""Our kernels inside llama.cpp: register them once, and say whether they are in use.

They are a ggml backend (native/src/kernels) that must be registered before a context is created.
If they cannot be used, llama.cpp's own kernels compute everything and the reason is reported.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import llama_cpp

from infer_os.models.network import ERF_GELU, GELU_KEY
from infer_os.models.windows import Windows

from .abi import Status
from .amx import NO_AMX, Amx, has_amx, use_amx
from .attention_windows import read_windows
from .cpu import repacked_types, used_features
from .ggml_types import ggml_type_named, ggml_types
from .gguf_file import GgufHeader
from .kv_state import OWN_CACHES, KvGeometry, kv_geometry
from .layouts import Repacking, llama_layouts
from .library import build_complaint, build_info, load_library
from .logs import route_logs

# takes_attention of native/src/kernels/attention_op.cpp
_MOST_HEAD = 256
_TOKENS, _POSITIONS, _HEAD = "token_embd.weight", "position_embd.weight", "output.weight"
#: what ``inferos_kernels_switch`` takes
_NOTHING, _KERNELS, _KERNELS_AND_COLUMNS, _WHOLE_GRAPH, _WHOLE_GRAPH_ERF = range(5)


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """``variant`` is our kernels' instruction set; if empty, llama.cpp's run, for ``reason``."""

    variant: str
    reason: str = ""
    amx: Amx = NO_AMX

    @property
    def in_use(self) -> bool:
        """Whether our kernels run."""
        return bool(self.variant)


@dataclass(frozen=True, slots=True)
class OwnKernels:
    """What our kernels compute of a model.

    ``weights`` and ``caches`` are the types whose products and whose attention our kernels compute,
    independent of the number of tokens. Products of ``by_column`` types are computed as for single
    tokens in batches of up to ``most_columns``, in a context of one sequence.
    """

    weights: frozenset[str]
    caches: frozenset[str]
    by_column: frozenset[str] = frozenset()
    most_columns: int = 1


#: ``--no-native``.
SWITCHED_OFF = KernelStatus("", "switched off")


@functools.cache
def start_kernels() -> KernelStatus:
    """Register the backend with llama.cpp on the first call; later calls return its outcome."""
    library = load_library()
    route_logs()
    # before any of ggml's internal structs are read
    complaint = build_complaint(build_info(library))
    if complaint:
        return KernelStatus("", complaint)
    reason = library.inferos_kernels_start().decode()
    if reason:
        return KernelStatus("", reason, Amx(has_amx(), "our kernels do not run"))
    amx = use_amx()
    return KernelStatus(library.inferos_kernels_name().decode(), amx=amx)


def kernel_status(wanted: bool) -> KernelStatus:
    """The status for a model that wants our kernels, or does not."""
    return start_kernels() if wanted else SWITCHED_OFF


def left_out() -> float:
    """The share of steps in which a thread of our kernels was left out, in this process.

    That happens beside other programs, where fewer threads turn out to be faster.
    """
    return float(load_library().inferos_kernels_left_out())


def taken_types(status: KernelStatus) -> frozenset[str]:
    """Names of the weight types whose products our kernels compute."""
    if not status.in_use:
        return frozenset()
    return _types_of(load_library().inferos_kernels_takes)


def _types_of(takes: Any) -> frozenset[str]:
    """Names of the ggml types for which a library function returns true."""
    return frozenset(kind.name for kind in ggml_types().values() if takes(kind.id))


def own_kernels(status: KernelStatus, geometry: KvGeometry) -> OwnKernels | None:
    """What our kernels compute of a model with heads of this geometry; None: nothing."""
    if not status.in_use:
        return None
    heads = geometry.head_k, geometry.head_v
    return OwnKernels(
        taken_types(status),
        frozenset(
            name
            for name in OWN_CACHES
            if max(heads) <= _MOST_HEAD
            and all(head % ggml_type_named(name).block == 0 for head in heads)
        ),
        _types_of(load_library().inferos_kernels_takes_columns),
        load_library().inferos_kernels_most_columns(),
    )


def computed_windows(status: KernelStatus, header: GgufHeader) -> Windows | None:
    """The windows of a file's layers, if our kernels compute them."""
    own = own_kernels(status, kv_geometry(header))
    return read_windows(header) if own is not None and own.caches else None


def exact_context(status: KernelStatus, header: GgufHeader) -> int:
    """Tokens up to which a file's model is computed as it was trained.

    Raises:
        GgufError: the file's context length is not a number.
    """
    trained, windows = header.count("context_length", 2048), read_windows(header)
    if windows is None or computed_windows(status, header) is not None:
        return trained
    return min(trained, windows.size)


class OwnGraph(Enum):
    """How much of a step our kernels compute."""

    #: Products and attention of some types; llama.cpp's CPU backend the rest.
    PARTS = "parts"
    #: Every node.
    WHOLE = "whole"
    #: Every node, with a GELU by the error function, as the checkpoint has it.
    WHOLE_ERF = "whole, erf"


def own_graph(status: KernelStatus, header: GgufHeader, caches: Iterable[str]) -> OwnGraph:
    """How much of a model's steps our kernels compute.

    Args:
        status: whether they run.
        header: the model's.
        caches: types of K and V.
    """
    own = own_kernels(status, kv_geometry(header))
    if (
        own is None
        or not own.caches.issuperset(caches)
        or not own.weights.issuperset(factor_types(header))
        or _has_other_nodes(header)
    ):
        return OwnGraph.PARTS
    return OwnGraph.WHOLE_ERF if header.metadata.get(GELU_KEY) == ERF_GELU else OwnGraph.WHOLE


def _has_other_nodes(header: GgufHeader) -> bool:
    """Whether a model's graph has nodes that ours do not compute: YaRN's rotations, a clamp."""
    settings, prefix = header.metadata, header.architecture
    scaling = settings.get(f"{prefix}.rope.scaling.type")
    return scaling in ("yarn", "longrope") or bool(settings.get(f"{prefix}.attention.clamp_kqv"))


def factor_types(header: GgufHeader) -> frozenset[str]:
    """Types of the matrices that activations are multiplied with; others are looked up."""
    names = {tensor.name for tensor in header.tensors}
    looked_up = {_POSITIONS} | ({_TOKENS} if _HEAD in names else set())
    return frozenset(
        t.type.name for t in header.tensors if len(t.shape) > 1 and t.name not in looked_up
    )


def repacking(status: KernelStatus) -> Repacking:
    """What decides the layouts of a file's weights here."""
    return Repacking(llama_layouts().types, taken_types(status))


def file_layouts(kinds: Iterable[str], status: KernelStatus) -> frozenset[str]:
    """Types of a file's tensors that get a different layout; see :meth:`.layouts.Repacking.of`."""
    return repacking(status).of(kinds)


def layout_notes(kinds: Iterable[str], status: KernelStatus) -> tuple[str, ...]:
    """Notes for a user who asked for another layout, if the file's own is kept.

    Args:
        kinds: types of the file's tensors.
        status: whether our kernels run.
    """
    layouts = llama_layouts()
    wanted = repacked_types(used_features()).intersection(kinds) - taken_types(status)
    if not layouts.reason or not wanted:
        return ()
    return (f"weights keep the file's layout: llama.cpp's AMX layout: {layouts.reason}",)


@contextmanager
def kernels_for(
    status: KernelStatus,
    c_params: Any,
    *,
    by_column: bool = False,
    graph: OwnGraph = OwnGraph.PARTS,
    windows: Sequence[int] = (),
) -> Iterator[None]:
    """A context created inside, by this thread, has our kernels, or only llama.cpp's.

    Args:
        status: that of the model.
        c_params: the ``llama_context_params`` that it is created with.
        by_column: compute a few tokens as single ones are, see :class:`OwnKernels`.
        graph: how much of a step they compute, see :func:`own_graph`.
        windows: tokens that each layer sees, 0 for all; empty if no layer has a window.
    """
    switch = load_library().inferos_kernels_switch
    _set_windows(windows)
    if status.in_use:
        # by default, llama.cpp drops it if a device other than the cache's computes it
        c_params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    if not status.in_use:
        switch(_NOTHING)
    elif graph is OwnGraph.PARTS:
        switch(_KERNELS_AND_COLUMNS if by_column else _KERNELS)
    else:
        switch(_WHOLE_GRAPH_ERF if graph is OwnGraph.WHOLE_ERF else _WHOLE_GRAPH)
    try:
        yield
    finally:
        switch(_KERNELS)
        _set_windows(())


def _set_windows(windows: Sequence[int]) -> None:
    """Those of the layers of contexts that this thread creates from now on."""
    array = (ctypes.c_int32 * len(windows))(*windows)
    if load_library().inferos_kernels_windows(len(windows), array) != Status.OK:
        raise MemoryError
