"""Fuzz the readers: ``python tests/fuzz/run.py [TARGET ...] --seconds 60 --work build/fuzz``.

Each target runs in a process of its own under atheris (libFuzzer's engine with coverage of Python),
from its seeds and from what earlier runs found worth keeping in ``WORK/TARGET/corpus``. An input
that raises an error that no user is meant to see, takes over 10 seconds or over 2 GB stays in
``WORK/TARGET``, and the exit code is 1. ``--once FILE`` runs one input without atheris.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from targets import TARGETS  # noqa: E402 - of this folder

_LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1")


def functions(namespace: Mapping[str, Any], seen: set[int]) -> Iterator[types.FunctionType]:
    """Every function of ours in a module or class, each once."""
    for value in namespace.values():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        value = getattr(value, "__wrapped__", value)
        if not (getattr(value, "__module__", None) or "").startswith("infer_os"):
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, type):
            yield from functions(vars(value), seen)


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz in this process; never returns."""
    import atheris

    seen: set[int] = set()
    # an editable install has an import hook of its own, before that of atheris
    for module in [m for key, m in sys.modules.items() if key.startswith("infer_os")]:
        for function in list(functions(vars(module), seen)):
            atheris.instrument_func(function)
    target = TARGETS[name]
    folder = Path(
        tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )

    def one(data: bytes) -> None:
        target.run(data, folder)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def run(name: str, seconds: int, work: Path) -> tuple[int, bool]:
    """Fuzz a target in a child; returns the inputs that ran, and whether nothing was found."""
    corpus = work / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [
        sys.executable, __file__, name, "--inside", str(corpus), *_LIMITS,
        f"-max_total_time={seconds}", f"-artifact_prefix={work / name}/",
    ]  # fmt: skip
    child = subprocess.run(command, capture_output=True, text=True, errors="replace")
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", child.stderr)
    good = child.returncode == 0
    if not good:
        print(f"---- {name}\n{child.stdout[-1500:]}\n{child.stderr[-3000:]}")
    return int(counted[1]) if counted else 0, good


def main() -> None:
    """Parse, run each target, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--once", type=Path, metavar="FILE", help="run this input alone")
    if "--inside" in sys.argv:
        at = sys.argv.index("--inside")
        fuzz(sys.argv[1], sys.argv[at + 1 :])
    asked = parser.parse_args()
    if unknown := [name for name in asked.targets if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    names = asked.targets or list(TARGETS)
    if asked.once is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[names[0]].run(asked.once.read_bytes(), Path(folder))
        return
    failed = False
    for name in names:
        count, good = run(name, asked.seconds, asked.work)
        failed |= not good
        outcome = "nothing found" if good else "FOUND"
        print(f"{name:16} {count:10,} inputs in {asked.seconds} s: {outcome}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
