"""``--adapter`` where a single text is written."""

from __future__ import annotations

from ..store.wish import ModelWish


def check_one_adapter(model: ModelWish) -> None:
    """See that every adapter has an effect on a text that cannot change it.

    Raises:
        SettingsError: there are several.
    """
    from ..runtime.errors import SettingsError

    if len(model.adapters) > 1:
        raise SettingsError(
            f"--adapter {model.adapters[1]}: one text is written with one adapter; chat, batch and "
            "serve switch between several"
        )
