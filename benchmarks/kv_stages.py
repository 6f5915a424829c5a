"""What a staged KV cache costs: perplexity, bytes, and the time of a change of stage.

    python benchmarks/kv_stages.py perplexity [--windows 8] [--context 1024]
    python benchmarks/kv_stages.py bytes
    python benchmarks/kv_stages.py change [--tokens 1024] [--repeats 5]
    python benchmarks/kv_stages.py budget

``perplexity``: the bundled model on its held-out text, token by token, staged against F16 (the
ratio is to stay within 0.1 % for Q8_0 and 1 % for Q4_0). ``bytes``: caches of 2048 tokens as
llama.cpp allocates them. ``change``: seconds of a change of stage of GPT-J's full geometry against
those of a decoded token, alternately in one process; the rows are random. ``budget``: anonymous
resident memory during a change of stage, without what existed next to the first cache. Every row
is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from random_gguf import write_random_gguf

import infer_os.models.bundled
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.kv_state import KvFormat, KvGeometry
from infer_os.native.library import llama_version
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.kv.schedule import KvModel, KvStage
from infer_os.runtime.kv.staged import SavedRows
from infer_os.runtime.settings import EngineSettings

_BUNDLED = Path(infer_os.models.bundled.__file__).parent
_GEOMETRIES = {
    "gpt-j-6B": KvGeometry(28, 16, 256, 256),
    "bloom-7b1": KvGeometry(30, 32, 128, 128),
    "gpt-neox-20b": KvGeometry(44, 64, 96, 96),
}


def say(row: dict[str, Any], threads: int) -> None:
    """Print a row with what it was measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    where = {"command": " ".join(sys.argv), "commit": commit, "llama": llama_version(), "cpu": cpu,
             "threads": threads}  # fmt: skip
    print(json.dumps(row | where), flush=True)


# ---- perplexity


def negative_logs(engine: LlamaEngine, window: list[int], prompt: int) -> list[float]:
    """-log p of every token after the first ``prompt``, each with all before it as context."""
    engine.forget()
    engine.feed(window[:prompt])
    result = []
    for token in window[prompt:]:
        logits = engine.context.logits().astype(np.float64)
        top = logits.max()
        result.append(float(top + np.log(np.exp(logits - top).sum()) - logits[token]))
        engine.step(token)
    return result


def perplexity(arguments: argparse.Namespace) -> None:
    """Staged caches against F16 over the same windows."""
    text = (_BUNDLED / "held-out.txt").read_text()
    n_ctx, half = arguments.context, arguments.context // 2
    first = n_ctx // 4
    specs = ["f16", f"f16:{first},q8_0:{n_ctx}", "q8_0", f"f16:{first},q4_0:{n_ctx}",
             f"f16:{first},q8_0:{half},q4_0:{n_ctx}", "q4_0"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        convert(ConvertSettings(_BUNDLED / "austen-6m", gguf, "f16"))
        exact = 0.0
        for spec in specs:
            settings = EngineSettings(n_ctx, "mmap", arguments.threads, spec)
            with LlamaEngine(gguf, settings) as engine:
                tokens = engine.vocab.tokenize(text)
                windows = [
                    tokens[i * n_ctx : (i + 1) * n_ctx]
                    for i in range(min(arguments.windows, len(tokens) // n_ctx))
                ]
                logs = [log for window in windows for log in negative_logs(engine, window, 32)]
            value = float(np.exp(np.mean(logs)))
            exact = exact or value
            row = {"what": "perplexity", "kv": spec, "context": n_ctx, "tokens": len(logs),
                   "perplexity": value, "against_f16": value / exact - 1}  # fmt: skip
            say(row, arguments.threads)


# ---- bytes


def sizes(arguments: argparse.Namespace) -> None:
    """Bytes of 2048 tokens, and what is saved against F16."""
    for name, geometry in _GEOMETRIES.items():
        model = KvModel(geometry)
        full = KvStage("f16", "f16", 2048).n_bytes(model)
        for kind in ("f16", "q8_0", "q5_1", "q4_0"):
            n_bytes = KvStage(kind, kind, 2048).n_bytes(model)
            row = {"what": "bytes", "geometry": name, "kv": kind, "tokens": 2048, "bytes": n_bytes,
                   "saved": 1 - n_bytes / full}  # fmt: skip
            say(row, arguments.threads)


# ---- a change of stage, in time and in memory


def random_rows(geometry: KvGeometry, n_tokens: int, batch: int = 64) -> Iterator[SavedRows]:
    """F16 rows as llama.cpp saves them, with random values: filling a cache costs nothing."""
    form = KvFormat("f16", "f16")
    values = np.random.default_rng(1).standard_normal(batch * max(geometry.widths), np.float32)
    for first in range(0, n_tokens, batch):
        n = min(batch, n_tokens - first)
        state = np.empty(form.state_bytes(geometry, n), np.uint8)
        struct.pack_into("<IiII", state.data, 0, 0xAF143CD8, 0, 1, n)
        cells = state[16 : 16 + 12 * n].view("<i4").reshape(n, 3)
        cells[:] = np.stack([np.arange(first, first + n), np.ones(n), np.zeros(n)], axis=1)
        at = 16 + 12 * n
        struct.pack_into("<II", state.data, at, 0, geometry.n_layer)
        at += 8
        for width in [w for w in geometry.widths for _layer in range(geometry.n_layer)]:
            struct.pack_into("<iQ", state.data, at, 1, 2 * width)
            rows = values[: n * width].astype("<f2").view(np.uint8)
            state[at + 12 : at + 12 + len(rows)] = rows
            at += 12 + len(rows)
        yield SavedRows(first, n, state)


def fill(engine: LlamaEngine, n_tokens: int) -> None:
    """Hold ``n_tokens`` in the first stage."""
    rows = random_rows(_GEOMETRIES["gpt-j-6B"], n_tokens)
    engine.restore([1 + i for i in range(n_tokens)], KvFormat("f16", "f16"), rows)


def change(arguments: argparse.Namespace) -> None:
    """A change of stage in units of decoded tokens, measured alternately, at GPT-J's full size."""
    n_tokens = arguments.tokens
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        gguf = Path(folder) / "gptj.gguf"
        write_random_gguf("gpt-j-6B", "q4_0", gguf)
        for target in ("q8_0", "q4_0"):
            settings = EngineSettings(
                2048, "mmap", arguments.threads, f"f16:{n_tokens},{target}:2048"
            )
            changes, decodes = [], []
            with LlamaEngine(gguf, settings) as engine:
                for i in range(arguments.repeats + 1):
                    fill(engine, n_tokens - 4)
                    start = time.perf_counter()
                    for token in range(4):
                        engine.step(token)
                    middle = time.perf_counter()
                    engine._make_room(n_tokens, n_tokens + 1)
                    end = time.perf_counter()
                    if engine.kv.types != target or engine.take_notes():
                        raise SystemExit(f"the rows did not become {target}")
                    if i:  # the first round warms up
                        decodes.append((middle - start) / 4)
                        changes.append(end - middle)
            ratios = sorted(c / d for c, d in zip(changes, decodes, strict=True))
            row = {"what": "change", "geometry": "gpt-j-6B q4_0", "kv": f"f16 to {target}",
                   "tokens": n_tokens, "repeats": arguments.repeats,
                   "change_s": statistics.median(changes), "token_s": statistics.median(decodes),
                   "in_tokens": statistics.median(ratios),
                   "spread": [ratios[0], ratios[-1]]}  # fmt: skip
            say(row, arguments.threads)


def anonymous() -> int:
    """Bytes of this process that are not pages of a file."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def budget(arguments: argparse.Namespace) -> None:
    """The most memory that a change of stage takes, watched from outside, against the budget."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        gguf = Path(folder) / "gptj.gguf"
        write_random_gguf("gpt-j-6B", "q4_0", gguf)
        for mib in (280, 400, 600, 800):
            settings = EngineSettings(2048, "mmap", arguments.threads, "", mib << 20)
            with LlamaEngine(gguf, settings) as engine:
                first = engine.kv
                other = anonymous() - first.n_bytes
                if first.n_stages > 1:
                    fill(engine, first.up_to)
                seen, done = [anonymous()], threading.Event()

                def watch(seen: list[int] = seen, done: threading.Event = done) -> None:
                    while not done.wait(0.0005):
                        seen.append(anonymous())

                watcher = threading.Thread(target=watch)
                watcher.start()
                if first.n_stages > 1:
                    engine._make_room(first.up_to, first.up_to + 1)
                done.set()
                watcher.join()
                row = {"what": "budget", "geometry": "gpt-j-6B", "budget": mib << 20,
                       "schedule": first.schedule, "counted_peak": engine.kv.peak_bytes,
                       "resident_peak": max(seen) - other, "samples": len(seen)}  # fmt: skip
            say(row, arguments.threads)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("perplexity", "bytes", "change", "budget"))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1024, help="held at the change of stage")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="for a temporary model of 3.5 GB")
    arguments = parser.parse_args()
    what = {"perplexity": perplexity, "bytes": sizes, "change": change, "budget": budget}
    what[arguments.what](arguments)


if __name__ == "__main__":
    main()
