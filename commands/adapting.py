"""``--adapter`` in commands that write one text, or many."""

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


def adapter_names(model: ModelWish) -> tuple[str, ...]:
    """What a model's adapters are called, before they are loaded.

    Raises:
        SettingsError, SourceError, UnsupportedError: what names no adapter.
    """
    if not model.adapters:
        return ()
    from ..store.runtime_adapters import named

    return tuple(name for name, _ in named(model.adapters))
