"""The draft model of a batch: read once, opened for each sequence that has room for guesses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.models.shape import ModelShape
from infer_os.native.backend import exact_context, kernel_status
from infer_os.native.graph_check import read_model_header

from ..engine import LlamaEngine
from ..plan.shapes import header_shape
from ..settings import EngineSettings
from ..speculative.draft import Drafter
from ..speculative.lookup import LookupDrafter
from ..speculative.model_drafter import ModelDrafter
from ..speculative.vocabularies import shared_tokens


@dataclass(frozen=True, slots=True)
class BatchDraft:
    """A draft model's file, its sizes, and which of its tokens are the target's, (n_draft,)."""

    path: Path
    shape: ModelShape
    n_ctx_train: int
    shared: NDArray[np.bool_]


def read_draft(target: Path, settings: EngineSettings) -> BatchDraft | None:
    """The draft that the settings name; None for ``none`` or ``lookup``.

    Raises:
        GgufError: the file cannot be used.
        SettingsError: it has other tokens.
    """
    if settings.draft in ("none", "lookup"):
        return None
    header = read_model_header(Path(settings.draft))
    return BatchDraft(
        header.path, header_shape(header), exact_context(kernel_status(settings.native), header),
        shared_tokens(read_model_header(target), header),
    )  # fmt: skip


def make_drafters(
    draft: BatchDraft | None, settings: EngineSettings, n_ctx: int
) -> list[tuple[Drafter, bool]]:
    """Drafters for one more sequence, each with whether its guesses are free."""
    drafters: list[tuple[Drafter, bool]] = [(LookupDrafter(), True)]
    if draft is not None:
        theirs = replace(
            settings, draft="none", kv="", kv_budget=0, prefetch=False, drop_pages=False,
            adapters=(), context=min(n_ctx, draft.n_ctx_train),
        )  # fmt: skip
        drafters.append((ModelDrafter(LlamaEngine(draft.path, theirs), draft.shared), False))
    return drafters
