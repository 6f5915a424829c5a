"""Where a file's weights came from, as metadata of the file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from infer_os.models.network import MetadataValue

from .adapters import ADAPTERS_KEY, adapters_digest
from .hub_checkpoint import HubCheckpoint
from .imatrix import ImportanceMatrix
from .source import AdapterSource
from .statistics import Statistics

#: Metadata key of the checkpoint's config, as JSON: what is made for the model later, such as an
#: adapter, is brought into the file's layout by it.
CONFIG_KEY = "inferos.source.config"
# of labels and the like there is no end, and the weights are decoded
_NOT_OF_NETWORK = ("id2label", "label2id", "task_specific_params", "quantization_config")


def config_text(config: Mapping[str, Any]) -> str:
    """A checkpoint's config for the file's metadata."""
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_NETWORK}
    return json.dumps(kept, separators=(",", ":"), sort_keys=True)


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
