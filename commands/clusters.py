"""What ``batch`` and ``score`` tell of a cluster at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.batch.ray_backend import RayBatch


def cluster_json(cluster: RayBatch) -> list[dict[str, Any]]:
    """Its nodes that computed, for ``--json``."""
    return [
        {"node": n.node, "parallel": n.parallel, "memory": {
            "peak_rss_bytes": n.peak_rss_bytes, "planned_bytes": n.planned_bytes,
        }}
        for n in cluster.nodes.values()
    ]  # fmt: skip


def cluster_words(cluster: RayBatch) -> str:
    """How many they are, and how much each computes at once."""
    parallel = "+".join(str(node.parallel) for node in cluster.nodes.values())
    return f"{len(cluster.nodes)} of {cluster.n_nodes} nodes, {parallel or 0} at once"
