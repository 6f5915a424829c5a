"""The catalog of known models: its place on the hub, its sizes, its draft partner.

:mod:`.published` has the records, ``catalog_families`` and ``catalog_neighbours`` the models.
Geometries are those of the published configs; the tests compare the parameters that follow from
them with the published counts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from .catalog_families import FAMILY_MODELS
from .catalog_neighbours import NEIGHBOUR_MODELS
from .published import CatalogModel
from .styles import DIALOGUE, STYLES

__all__ = ["CATALOG", "CatalogModel", "find_model", "model_of", "near_names", "style_for"]

#: Every known model.
CATALOG: tuple[CatalogModel, ...] = (*FAMILY_MODELS, *NEIGHBOUR_MODELS)


def find_model(name: str) -> CatalogModel | None:
    """The model with this hub id, alias or short name, in any case; None if unknown."""
    return _BY_NAME.get(name.lower())


def near_names(text: str, others: Iterable[str] = ()) -> str:
    """ "; did you mean ...?" with names of the catalog or of ``others``, or nothing."""
    known = (name for model in CATALOG for name in (model.id, model.name, *model.aliases))
    others = tuple(others)
    names = {name.rpartition("/")[2].lower(): name for name in others}  # of a folder, its last part
    names |= {name.lower(): name for name in (*known, *others)}
    near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""


def model_of(metadata: Mapping[str, Any]) -> CatalogModel | None:
    """The known model that a GGUF file was made from, if it was.

    The file's metadata says which repository it was converted from, or its name; a copy
    of a known model under another owner counts as that model.
    """
    keys = ("inferos.source.repository", "general.source.huggingface.repository", "general.name")
    for key in keys:
        name = str(metadata.get(key, ""))
        model = find_model(name) or find_model(name.rpartition("/")[2])
        if model is not None:
            return model
    return None


def style_for(metadata: Mapping[str, Any]) -> str:
    """How conversations with a GGUF file's model are written: the name of a style in ``STYLES``.

    Unknown models are taken for base models and get ``dialogue``.
    """
    model = model_of(metadata)
    return model.style if model is not None and model.style in STYLES else DIALOGUE.name


def _index() -> dict[str, CatalogModel]:
    names: dict[str, CatalogModel] = {}
    for model in CATALOG:
        for name in (model.id, model.name, *model.aliases):
            known = names.setdefault(name.lower(), model)
            if known is not model:
                raise ValueError(f"catalog: {name!r} names {known.id} and {model.id}")
    return names


_BY_NAME = _index()
