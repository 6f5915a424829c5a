"""The demo: the bundled checkpoint converted to Q8_0 and Q4_0, and a text from each.

A separate process writes each text, so that peak memory is measured per type.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ..convert.pipeline import convert
from ..convert.settings import ConvertSettings
from ..models.bundled import TARGET
from ..sizes import size_text
from . import console

_PROMPT = "It is a truth universally acknowledged, that"
_TYPES = ("q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One type's figures."""

    type: str
    file_bytes: int
    bits_per_weight: float
    peak_rss_bytes: int
    decode_tokens_per_s: float
    text: str


def run_demo(folder: Path, threads: int, *, as_json: bool = False) -> None:
    """Convert into ``folder``, write, and print the comparison, or its figures as JSON."""
    source_bytes = sum(f.stat().st_size for f in TARGET.glob("*.safetensors"))
    if as_json:
        rows = [_run_type(kind, folder, threads) for kind in _TYPES]
        console.answer_json({
            "model": TARGET.name, "source_bytes": source_bytes, "prompt": _PROMPT,
            "rows": [asdict(row) for row in rows],
        })  # fmt: skip
        return
    console.answer(
        f"The bundled checkpoint {TARGET.name} has {size_text(source_bytes)} of float16 weights."
    )
    rows = [_run_type(kind, folder, threads) for kind in _TYPES]
    for row in rows:
        console.answer(f"\n{row.type} writes:\n\n{_PROMPT}{row.text.rstrip()}")
    console.answer("")
    console.table(
        ("type", "file", "bits per weight", "peak RSS", "tokens/s"),
        [
            (
                row.type,
                size_text(row.file_bytes),
                f"{row.bits_per_weight:.2f}",
                size_text(row.peak_rss_bytes),
                f"{row.decode_tokens_per_s:.0f}",
            )
            for row in rows
        ],
    )


def _run_type(kind: str, folder: Path, threads: int) -> DemoRow:
    target = folder / f"{TARGET.name}-{kind}.gguf"
    report = convert(ConvertSettings(TARGET, target, kind, threads))
    command = [
        sys.executable, "-m", "infer_os.cli", "generate", str(target), "--prompt", _PROMPT,
        "--max-tokens", "100", "--seed", "7", "--temperature", "0.7", "--json",
        *(["--threads", str(threads)] if threads else []),
    ]  # fmt: skip
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return DemoRow(
        type=kind,
        file_bytes=report.n_bytes,
        bits_per_weight=report.bits_per_weight,
        peak_rss_bytes=result["memory"]["peak_rss_bytes"],
        decode_tokens_per_s=result["timings"]["decode_tokens_per_s"],
        text=result["text"],
    )
