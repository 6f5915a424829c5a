"""A Ray cluster on this machine, and a command where Ray is missing, for the tests of ``--ray``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A head and another node, both of this machine; skips the test where Ray is not installed."""
    pytest.importorskip("ray.data", reason="needs infer-os[ray]")
    from ray.cluster_utils import Cluster

    store = {"num_cpus": 1, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**store, "include_dashboard": False})
    made.add_node(**store)
    made.wait_for_nodes()
    try:
        yield made
    finally:
        made.shutdown()


def run_without_ray(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``infer-os COMMAND`` on in.jsonl with ``--ray auto``, where Ray cannot be imported."""
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from infer_os import cli\n"
        f"sys.argv = ['infer-os', '{command}', 'm.gguf', '-i', 'in.jsonl', '-o', 'out.jsonl',"
        " '--ray', 'auto']\n"
        "cli.main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder
    )
