"""A model on the hub, as a record. What a user's words mean is said by the store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infer_os.models.catalog import CatalogModel

#: Files taken in addition to the weights, if the repository has them; none of other frameworks.
SMALL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
# the hub's own rule, https://huggingface.co/docs/huggingface_hub: 96 letters, digits, - _ .
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)
_WANTED = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)


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

    @property
    def config(self) -> dict[str, object] | None:
        """The config of that revision as the catalog has it, if it has."""
        if self.model is None or self.revision != self.model.revision:
            return None
        return self.model.config


@dataclass(frozen=True, slots=True)
class ReadySource:
    """A ready GGUF file on the hub: ``OWNER/NAME:WANTED``.

    ``wanted`` is a quantization (``Q4_K_M``), a file's name, or ``auto``.
    """

    repository: str
    wanted: str
    revision: str = "main"

    @property
    def name(self) -> str:
        """What to call the model: the repository without its owner."""
        return self.repository.rpartition("/")[2]

    @property
    def text(self) -> str:
        """As a user types it."""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repository}{at}:{self.wanted}"


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A LoRA adapter's folder or file, its scale, and how the user named it by which option."""

    folder: Path
    scale: float
    text: str
    option: str = "--lora"

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.option} {self.text}"


def read_hub_name(text: str) -> HubSource | ReadySource | None:
    """``OWNER/NAME``, with ``@REVISION`` or ``:WANTED`` behind it, or both; None if it is neither.

    The revision is "" where none is given.
    """
    name, colon, wanted = text.partition(":")
    name, at, revision = name.partition("@")
    if not is_hub_id(name) or (at and not is_revision(revision)):
        return None
    if not colon:
        return HubSource(name, revision)
    if not _WANTED.fullmatch(wanted) or ".." in wanted:
        return None
    return ReadySource(name, wanted, revision or "main")


def is_hub_id(text: str) -> bool:
    """Whether a text is spelled ``OWNER/NAME``."""
    return _HUB_ID.fullmatch(text) is not None


def is_revision(text: str) -> bool:
    """Whether a text can be a branch, a tag or a commit."""
    return _REVISION.fullmatch(text) is not None and ".." not in text
