"""What ggml says last, where no caller can go on."""

from __future__ import annotations

import subprocess
import sys

from helpers import BUNDLED, Converter

#: Where memory that was promised does not come, in the words of ggml.
_ABORT = """
import sys
from pathlib import Path
from infer_os.native.library import load_library
from infer_os.native.model import LlamaModel
model = LlamaModel(Path(sys.argv[1]))
said = b"GGML_ASSERT(%s) failed"
load_library().ggml_abort(b"/a/b/ggml.c", 1644, said, b"ctx->mem_buffer != NULL")
"""


def test_where_ggml_aborts_the_process_ends_with_one_line(converted: Converter) -> None:
    path = converted(BUNDLED[0], "q8_0")
    done = subprocess.run(
        [sys.executable, "-c", _ABORT, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "error: llama.cpp cannot go on: ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed; "
        "not enough memory?\n"
    )
