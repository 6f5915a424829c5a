"""Turn the catalog and the cache into tables, lines and JSON objects."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sizes import count_text, size_text
from . import console

if TYPE_CHECKING:
    from ..store.listing import CachedDetails, ListedModel, ModelDetails, ModelList
    from ..store.removal import CachedModel

# narrower terminals get short names
_WIDE = 90
_SHORT_COMMIT = 12
_SHOWN_TYPES = ("q8_0", "q4_0")


def list_json(models: ModelList) -> dict[str, Any]:
    """``models --json``: bytes."""
    from ..cache import cache_folder

    return {
        "models": [_listed_json(listed) for listed in models.catalog],
        "cache": {
            "folder": str(cache_folder()),
            "bytes": models.cache_bytes,
            "models": [_cached_json(model) for model in models.cached],
        },
        "memory": models.limit,
    }


def _listed_json(listed: ListedModel) -> dict[str, Any]:
    return {
        "model": listed.model.id, "name": listed.model.name, "parameters": listed.n_params,
        "types": {
            plan.weights.type: {
                "bytes": plan.weights.n_bytes, "memory": plan.total, "fits": plan.fits,
            }
            for plan in listed.plans
        },
        "fits": listed.fits,
        "cached": [file.type for file in listed.cached.files] if listed.cached else [],
    }  # fmt: skip


def _cached_json(model: CachedModel) -> dict[str, Any]:
    return {
        "model": model.title,
        "files": [
            {"type": file.type, "bytes": file.n_bytes, "path": str(file.path)}
            for file in model.files
        ],
        "unfinished_bytes": model.unfinished,
    }


def show_list(models: ModelList) -> None:
    """``models``: what is in the cache, then the catalog."""
    wide = console.is_wide(_WIDE)
    size = size_text
    if models.cached:
        rows = [
            (
                _name(model.title, wide=wide),
                ", ".join(file.type for file in model.files) or "unfinished",
                size(model.n_bytes),
            )
            for model in models.cached
        ]  # fmt: skip
        console.table(("in the cache", "type", "size"), rows, left=2)
        console.answer("")
    known: list[tuple[str, ...]] = []
    for listed in models.catalog:
        q8_0, q4_0 = (size(listed.memory(kind)) for kind in _SHOWN_TYPES)
        name = _name(listed.model.id, wide=wide)
        known.append((name, listed.fits or "no", q4_0, q8_0, count_text(listed.n_params)))
    console.table(("catalog", "fits", "q4_0 needs", "q8_0 needs", "parameters"), known)
    console.answer("")
    console.answer("needs: the memory that running it takes")
    console.answer(f"fits: the finest type for {size(models.limit)}")
    console.answer(f"cache: {size(models.cache_bytes)} in {_cache()}")


def details_json(details: ModelDetails) -> dict[str, Any]:
    """``models show --json``."""
    found: dict[str, Any] = {"model": details.title}
    listed = details.listed
    if listed is not None:
        model = listed.model
        found |= {
            **_listed_json(listed), "aliases": list(model.aliases), "revision": model.revision,
            "architecture": model.architecture, "geometry": _geometry(listed),
            "weights": model.weights, "dtype": model.dtype, "draft": model.draft,
            "style": model.style,
        }  # fmt: skip
    found["cached"] = [
        {
            "type": file.type, "bytes": file.n_bytes, "path": file.path, "commit": file.commit,
            "architecture": file.architecture, "parameters": file.n_params,
            "context": file.context, "bits_per_weight": file.bits_per_weight,
            "converted": _time(file).isoformat(timespec="seconds"),
            "damage": file.damage or None, "run": _run_line(details, file),
        }
        for file in details.files
    ]  # fmt: skip
    found["unfinished_bytes"] = details.cached.unfinished if details.cached else 0
    return found


def _geometry(listed: ListedModel) -> dict[str, int]:
    g = listed.model.geometry
    return {
        "layers": g.n_layer, "embedding": g.n_embd, "heads": g.n_head, "feed_forward": g.n_ff,
        "vocabulary": g.n_vocab, "context": g.n_ctx,
    }  # fmt: skip


def show_details(details: ModelDetails) -> None:
    """``models show``: the catalog's entry, every type, the files in the cache."""
    size = size_text
    rows: list[tuple[str, str]] = []
    listed = details.listed
    if listed is not None:
        model = listed.model
        rows += [
            ("hub id", ", ".join((model.id, *model.aliases))),
            ("revision", model.revision),
            ("architecture", model.architecture),
            ("parameters", count_text(listed.n_params)),
            *((name.replace("_", "-"), str(n)) for name, n in _geometry(listed).items()),
            ("published as", f"{model.weights}, {model.dtype}"),
            ("draft partner", model.draft or "none"),
            ("prompt style", model.style),
        ]
    elif sound := next((file for file in details.files if file.header), None):
        rows += [
            ("architecture", sound.architecture or "unknown"),
            ("parameters", count_text(sound.n_params or 0)),
            ("context", str(sound.context or "unknown")),
        ]
    if details.cached:
        rows.append(("on the disk", size(details.cached.n_bytes)))
    if details.cached and details.cached.unfinished:
        rows.append(("unfinished", size(details.cached.unfinished)))
    if not details.files:
        rows.append(("in the cache", "nothing to run yet"))
    console.table(("model", _name(details.title, wide=console.is_wide(_WIDE))), rows, left=2)
    if listed is not None:
        console.answer("")
        types = [
            (
                plan.weights.type, size(plan.weights.n_bytes), size(plan.total),
                "yes" if plan.fits else "no",
            )
            for plan in listed.plans
        ]  # fmt: skip
        console.table(("type", "weights", "memory", "fits"), types)
    for file in details.files:
        state = ", damaged: the next run converts it again" if file.damage else ""
        console.answer(f"\n{file.type} in the cache, {size(file.n_bytes)}{state}")
        if file.bits_per_weight:
            console.answer(f"{file.bits_per_weight:.2f} bits per weight")
        if file.commit:
            console.answer(f"commit {file.commit[:_SHORT_COMMIT]}")
        console.answer(f"converted {_time(file):%Y-%m-%d %H:%M}")
        console.answer(file.path)  # not in a table, which would break it into lines
        console.answer(_run_line(details, file))
    if not details.files:
        console.answer(f"\ninfer-os pull {_argument(details)}")


def _run_line(details: ModelDetails, file: CachedDetails) -> str:
    kind = file.plain_type
    loras = "".join(f" --lora {shlex.quote(text)}" for text in file.loras)
    if details.cached and details.cached.is_ready:
        return f"infer-os run {_argument(details)}:{kind}"
    return f"infer-os run {_argument(details)} --type {kind}{loras}"


def _argument(details: ModelDetails) -> str:
    """The model as a word of a command line."""
    return shlex.quote(details.listed.model.name if details.listed else details.title)


def _time(file: CachedDetails) -> datetime:
    return datetime.fromtimestamp(file.converted, timezone.utc).astimezone()


def _name(title: str, *, wide: bool) -> str:
    """A title, or its last part if there is little room."""
    return title if wide else title.rpartition("/")[2]


def _cache() -> str:
    from ..cache import cache_folder

    folder, home = cache_folder(), Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)
