"""Where a file's weights came from, as metadata of the file."""

from __future__ import annotations

import shlex

from infer_os.models.network import MetadataValue

from .adapters import ADAPTERS_KEY, adapters_digest
from .hub_checkpoint import HubCheckpoint
from .imatrix import ImportanceMatrix
from .source import AdapterSource
from .statistics import Statistics


def adapters_origin(adapters: tuple[AdapterSource, ...]) -> dict[str, MetadataValue]:
    """What was added to the weights, as the user named it, with a digest of the content."""
    if not adapters:
        return {}
    texts = (source.text.encode("utf-8", "replace").decode() for source in adapters)
    return {ADAPTERS_KEY: shlex.join(texts), "inferos.lora.sha256": adapters_digest(adapters)}


def weights_origin(importance: ImportanceMatrix) -> dict[str, MetadataValue]:
    """As llama-quantize records it, with a digest to distinguish matrices."""
    return {
        "quantize.imatrix.dataset": ", ".join(importance.datasets),
        "quantize.imatrix.entries_count": len(importance.entries),
        "quantize.imatrix.chunks_count": importance.chunk_count,
        "inferos.imatrix.sha256": importance.digest,
    }


def hub_origin(hub: HubCheckpoint) -> dict[str, MetadataValue]:
    """A model's origin on the hub; the hub's own address, even if a mirror was used."""
    repository = hub.repository.id
    url = f"https://huggingface.co/{repository}"
    return {
        "general.source.url": url,
        "general.source.repo_url": url,
        "general.source.huggingface.repository": repository,
        "inferos.source.repository": repository,
        "inferos.source.revision": hub.repository.commit,
    }


def statistics_origin(statistics: Statistics) -> dict[str, MetadataValue]:
    """That errors were compensated, and by which statistics."""
    return {
        "inferos.quantize.method": "gptq",
        "inferos.quantize.statistics.sha256": statistics.digest,
    }
