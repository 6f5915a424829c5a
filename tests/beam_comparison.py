"""Run stored cases of a beam search: F32 weights, an F32 cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.beam_run import BeamRun
from infer_os.runtime.batch.beams import Beam
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.settings import EngineSettings

SETTINGS = EngineSettings(context=128, threads=1, kv="f32")


def ours(
    cases: list[dict[str, Any]], place: Path, folder_of: Callable[[str], Path]
) -> list[list[Beam]]:
    """What our search finds for each case; the converted models are kept in ``place``."""
    found = []
    with ExitStack() as stack:
        engines: dict[str, BatchEngine] = {}
        for case in cases:
            name = case["model"]
            if name not in engines:
                gguf = place / f"{name}.gguf"
                if not gguf.exists():
                    convert(ConvertSettings(folder_of(name), gguf, "f32"))
                most = max(each["beams"] for each in cases if each["model"] == name)
                engines[name] = stack.enter_context(
                    BatchEngine(gguf, SETTINGS, BatchSettings(beams=most))
                )
            engine = engines[name]
            search = BeamRun(engine.parts, case["beams"], engine.statistics)
            found.append(search.search(tuple(case["prompt"]), case["max_tokens"], case["ends"]))
    return found
