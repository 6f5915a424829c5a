"""Before a file is loaded: its context, its cache's schedule and its plan; then the load itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infer_os.models.shape import ModelShape
from infer_os.native.backend import exact_context, kernel_status, layout_notes
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.large_blocks import return_large_blocks
from infer_os.native.lora_adapter import load_adapter
from infer_os.native.model import LOAD_MODES, LlamaModel

from .pages import check_lockable, check_locked, drop_pages, locked_bytes, prefetch
from .plan.budget import own_budget
from .plan.memory_plan import Plan, check_plan
from .plan.positions import context_for
from .plan.shapes import header_positions, header_shape
from .plan.use import Use, plan_use
from .settings import EngineSettings, Extra


def choose_context(
    header: GgufHeader, asked: int, *, native: bool = True
) -> tuple[int, tuple[str, ...]]:
    """The context to allocate, and a warning if it is longer than what the model learned.

    Args:
        header: the file's.
        asked: tokens that the user wants; 0 for what suits the model.
        native: our own kernels are wanted.

    Raises:
        GgufError: the file's context length is not a number.
        SettingsError: the model has no positions that far.
    """
    trained = header.count("context_length", 2048)
    exact = exact_context(kernel_status(native), header)
    positions, name = header_positions(header), header.path.name
    return context_for(positions, name, trained, asked, exact if exact < trained else 0)


def plan_file(
    header: GgufHeader, settings: EngineSettings, draft: ModelShape | None = None
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a file about to be loaded, and warnings for the user.

    Args:
        header: the file's.
        settings: how it is loaded.
        draft: a draft model that is loaded with it.

    Raises:
        GgufError: a size in the header that is not a number.
        SettingsError: a context or a cache that is not possible for this model.
        MemoryShortage: it does not fit in ``--memory``, or in what is available.
    """
    shape = header_shape(header, constrained=Extra.CONSTRAINT in settings.extras)
    budget = own_budget(settings.memory, native=settings.native)
    plan, notes = plan_use(shape, Use(settings, draft=draft), budget)
    check_plan(plan)
    status = kernel_status(settings.native)
    if settings.native and not status.in_use:
        notes = (*notes, f"llama.cpp's own kernels compute: {status.reason}")
    if LOAD_MODES[settings.load].repack:
        notes = (*notes, *layout_notes((t.type.name for t in header.tensors), status))
    return plan, notes


def load_model(
    path: Path,
    settings: EngineSettings,
    plan: Plan,
    *,
    progress: Callable[[float], None] | None = None,
    warmed: Callable[[int, int], None] | None = None,
) -> LlamaModel:
    """Load the weights as ``--load``, ``--prefetch`` and ``--drop-pages`` say, and the adapters.

    Args:
        path: the file.
        settings: the options.
        plan: its plan, which fits.
        progress: called with 0.0 to 1.0 while llama.cpp loads.
        warmed: called with bytes done and in all while the file is prefetched.

    Raises:
        LockShortage: the weights cannot be locked.
        GgufError: an adapter's file is not one of this model.
        ModelLoadError: llama.cpp refuses a file.
    """
    locked = settings.load == "locked"
    n_bytes = plan.weights.n_bytes
    if locked:
        check_lockable(n_bytes)
    if settings.prefetch:
        prefetch(path, warmed)
    if settings.adapters:  # with another adapter, a context makes its buffers again
        return_large_blocks()
    before = locked_bytes() if locked else 0
    model = LlamaModel(path, load=settings.load, native=settings.native, progress=progress)
    try:
        for adapter in settings.adapters:
            model.adapters[adapter.name] = load_adapter(
                model.pointer, model.header, adapter.path, adapter.scale
            )
        if locked:
            check_locked(path, n_bytes, before)
        # copies are made: the file itself is no longer needed
        if settings.drop_pages and settings.load == "fast":
            drop_pages(path)
    except BaseException:
        model.close()
        raise
    return model
