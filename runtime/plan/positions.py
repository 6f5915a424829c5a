"""How many tokens of context a model can have, and when a user should be warned."""

from __future__ import annotations

from infer_os.models.graphs import Positions

from ..errors import SettingsError

_DEFAULT_CONTEXT = 4096


def context_for(
    positions: Positions | None, name: str, trained: int, asked: int, exact: int = 0
) -> tuple[int, tuple[str, ...]]:
    """The context to allocate, and a warning if it is longer than what the model was trained for.

    Args:
        positions: how the model knows where a token stands; None if nobody has looked.
        name: the model's, for the error.
        trained: tokens that it was trained for.
        asked: tokens that the user wants; 0 for what suits the model.
        exact: tokens up to which its layers' windows make no difference, if they are not computed;
            0 if they are, or there are none.

    Raises:
        SettingsError: the model has no positions that far, or would not be computed as trained.
    """
    if 0 < exact < trained:
        why = (
            f"some layers of {name} see windows of {exact} tokens, which only infer-os' kernels "
            "compute, for heads of up to 256 values in multiples of 32"
        )
        if asked > exact:
            raise SettingsError(
                f"--context {asked}: {why}; take --context {exact}, or leave out --no-native"
            )
        return asked or min(exact, _DEFAULT_CONTEXT), () if asked else (f"context {exact}: {why}",)
    if not asked:
        return min(trained, _DEFAULT_CONTEXT), ()
    if asked <= trained or positions is Positions.SLOPES:
        return asked, ()
    if positions is Positions.LEARNED:
        raise SettingsError(
            f"--context {asked}: {name} has {trained} learned positions and none beyond"
        )
    return asked, (
        f"--context {asked}: the model was trained for {trained} tokens; expect nonsense beyond",
    )
