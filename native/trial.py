"""Load a model in a child process first, where a failed llama.cpp assertion ends only the child.

For files that the header check does not cover in full: graphs other than those that infer-os
converts to, and models in several parts. The child maps the file and computes a token, so what it
reads is in the page cache when the model is actually loaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from .errors import ModelLoadError

_CODE = "import sys; from infer_os.native.trial import main; main(sys.argv[1], sys.argv[2] == '1')"
_N_CTX = 64
_LONGEST_LINE = 200

#: Files that passed, by path and state: a command loads some of them twice.
_passed: set[tuple[object, ...]] = set()


def try_in_child(path: Path, *, vocab_only: bool) -> None:
    """Load the file, and compute one token, in a child process.

    What llama.cpp properly refuses is not an error here: loading will say why.

    Raises:
        ModelLoadError: llama.cpp ends the process on the file.
    """
    stat = path.stat()
    identity = (path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns, vocab_only)
    if identity in _passed:
        return
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GGML_NO_BACKTRACE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(path.absolute()), str(int(vocab_only))],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    if done.returncode < 0:
        raise ModelLoadError(
            f"{path}: llama.cpp cannot run it: {_last_words(done.stderr, -done.returncode)}"
        )
    _passed.add(identity)


def _last_words(stderr: bytes, number: int) -> str:
    """What a failed assertion or an exception said; else the signal's name."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    for line in lines:
        if "GGML_ASSERT" in line or "what():" in line or "fatal error" in line:
            return line.rsplit("/", 1)[-1][:_LONGEST_LINE]
    known = {one.value: one.name for one in signal.Signals}
    return f"it ends with {known.get(number, f'signal {number}')}"


def main(path: str, vocab_only: bool) -> None:
    """The child: load, tokenize, compute a token. Ends by a signal if llama.cpp asserts."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    params.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return
    room = 32
    tokens = (llama_cpp.llama_token * room)()
    vocab = llama_cpp.llama_model_get_vocab(model)
    text = "A ä\n".encode()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, room, True, True)
    if vocab_only:
        return
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = _N_CTX, _N_CTX, _N_CTX
    settings.n_threads = settings.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, settings)
    if context and count > 0:
        llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, min(count, room)))
