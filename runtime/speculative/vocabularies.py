"""Which tokens a draft model shares with its target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infer_os.native.gguf_file import GgufHeader

from ..errors import SettingsError

#: ``tokenizer.ggml.token_type`` of a row that no text produces (llama.h, LLAMA_TOKEN_TYPE_UNUSED).
_UNUSED = 5
#: Share of the smaller vocabulary that must be shared for a draft to be useful.
_LEAST_SHARED = 0.5


def shared_tokens(target: GgufHeader, draft: GgufHeader) -> NDArray[np.bool_]:
    """Per id of the draft, (n_draft,), whether it is the same token in the target.

    Ids beyond the shorter vocabulary, and those that only pad either, are not shared: they are
    never proposed and never fed to the draft.

    Raises:
        SettingsError: an id stands for different texts in the two.
    """
    ours, theirs = _tokens(target), _tokens(draft)
    ours_used, theirs_used = _used(target, len(ours)), _used(draft, len(theirs))
    n_both = min(len(ours), len(theirs))
    shared = np.zeros(len(theirs), np.bool_)  # (n_draft,)
    shared[:n_both] = ours_used[:n_both] & theirs_used[:n_both]
    for token in np.flatnonzero(shared).tolist():
        if ours[token] != theirs[token]:
            raise SettingsError(
                f"--draft {draft.path}: its tokenizer differs from {target.path.name}'s: token "
                f"{token} is {theirs[token]!r} there and {ours[token]!r} here; a draft must share "
                "the target's vocabulary"
            )
    if shared.sum() < _LEAST_SHARED * n_both:
        raise SettingsError(
            f"--draft {draft.path}: it shares only {shared.sum()} tokens with {target.path.name}; "
            "a draft must share the target's vocabulary"
        )
    return shared


def _tokens(header: GgufHeader) -> Sequence[str]:
    return tuple(header.metadata.get("tokenizer.ggml.tokens", ()))


def _used(header: GgufHeader, n_tokens: int) -> NDArray[np.bool_]:
    kinds = np.array([*header.metadata.get("tokenizer.ggml.token_type", ())], np.int32)
    used = np.ones(n_tokens, np.bool_)
    used[: len(kinds)] = kinds[:n_tokens] != _UNUSED
    return used
