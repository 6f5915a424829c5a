"""What a SOURCE on the command line means: a local folder, a catalog name or a hub id.

The rule: a folder that exists wins; then a name in the catalog; then ``OWNER/NAME`` on the hub.
Anything else is taken as the folder that it seems to name, which then does not exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infer_os.cache import cache_folder as cache_folder
from infer_os.models.catalog import CatalogModel, find_model

from .errors import SourceError, UnsupportedError

# the hub's own rule, https://huggingface.co/docs/huggingface_hub: 96 letters, digits, - _ .
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model on the hub. ``revision`` is a branch, a tag or a commit."""

    repository: str
    revision: str = "main"
    model: CatalogModel | None = None

    @property
    def name(self) -> str:
        """What to call the model: the repository without its owner."""
        return self.repository.rpartition("/")[2]


def is_hub_id(text: str) -> bool:
    """Whether a text is spelled ``OWNER/NAME``."""
    return _HUB_ID.fullmatch(text) is not None


def find_source(text: str, revision: str | None = None) -> Path | HubSource:
    """Read a SOURCE; ``revision`` overrides the catalog's.

    Raises:
        UnsupportedError: a revision of a local folder, or one that cannot be one.
        SourceError: nothing, a bare name that is neither a folder nor in the catalog, or a folder
            that does not exist in one that does.
    """
    if not text:
        raise SourceError("SOURCE is empty; give a folder, a catalog name or a hub id")
    folder = Path(text)
    known = find_model(text)
    local = folder.exists() or not (known or _HUB_ID.fullmatch(text))
    if local:
        if not folder.exists() and not any(mark in text for mark in "/.~"):
            raise SourceError(
                f"{text}: no such folder, and no name in the catalog; give a folder, a catalog "
                "name (gpt-j-6B) or a hub id (EleutherAI/gpt-j-6B)"
            )
        if revision is not None:
            raise UnsupportedError(f"--revision {revision}: {text} is a local folder; drop it")
        return folder
    if known is None and revision is None and folder.parent.is_dir():
        # EleutherAI/... beside a folder EleutherAI is rather a slip than a wish for the network
        raise SourceError(
            f"{text}: no such folder, though {folder.parent} is one; for a model on the hub, add "
            "--revision main"
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UnsupportedError(f"--revision {revision!r}: expected a branch, a tag or a commit")
    repository = known.id if known else text
    return HubSource(repository, revision or (known.revision if known else "main"), known)
