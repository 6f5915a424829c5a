"""Write imatrix/: what llama.cpp's own tools make of neox-parallel and a text.

    python tests/reference/make_imatrix.py LLAMA_BIN

LLAMA_BIN holds llama-imatrix and llama-quantize, built from the pinned llama.cpp. llama.gguf is the
importance matrix that llama-imatrix collects; quantized.json has the SHA-256 of every tensor that
llama-quantize makes with it. Run again whenever neox-parallel changes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings

HERE = Path(__file__).parent
TYPES = ("q4_0", "q4_k_s", "q3_k_m", "iq4_nl", "iq3_s")


def main(tools: Path) -> None:
    """Run the tools and keep what they write."""
    folder = HERE / "imatrix"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = work / "model.gguf"
        convert(ConvertSettings(HERE / "neox-parallel", model, "f32"))
        # a batch of one chunk: several in one batch differ by the rounding of attention
        subprocess.run(
            [
                tools / "llama-imatrix", "-m", model, "-f", "text.txt", "-o", "llama.gguf",
                "-c", "64", "-b", "64", "-t", "1", "--process-output", "--no-ppl",
            ],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        made: dict[str, dict[str, dict[str, str]]] = {}
        for kind in TYPES:
            target = work / f"{kind}.gguf"
            subprocess.run(
                [
                    tools / "llama-quantize", "--pure", "--imatrix", folder / "llama.gguf",
                    model, target, kind, "1",
                ],
                check=True, capture_output=True,
            )  # fmt: skip
            made[kind] = {
                tensor.name: {
                    "type": tensor.tensor_type.name.lower(),
                    "sha256": hashlib.sha256(tensor.data.tobytes()).hexdigest(),
                }
                for tensor in gguf.GGUFReader(target).tensors
                if tensor.tensor_type != gguf.GGMLQuantizationType.F32
            }
    (folder / "quantized.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
