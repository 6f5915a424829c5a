"""Own a llama.cpp model and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp

from .errors import ModelLoadError
from .gguf_file import GgufHeader, read_gguf_header
from .logs import forget_complaints, last_complaint, route_logs


@dataclass(frozen=True, slots=True)
class LoadMode:
    """How weights come into memory: llama.cpp's ``load_mode`` and whether it may repack them."""

    load_mode: int
    repack: bool


#: ``--load``: mmap keeps the file's own pages, shared between processes; fast copies the weights
#: into llama.cpp's repacked layouts, without keeping the file's pages besides.
LOAD_MODES: dict[str, LoadMode] = {
    "mmap": LoadMode(llama_cpp.LLAMA_LOAD_MODE_MMAP, repack=False),
    "fast": LoadMode(llama_cpp.LLAMA_LOAD_MODE_NONE, repack=True),
}


class Vocab:
    """A model's vocabulary: text to tokens and back. Lives as long as its model."""

    def __init__(self, pointer: Any, normalizer: str, n_normal: int) -> None:
        self._pointer = pointer
        self._normalizer = normalizer
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(pointer)
        self.n_normal = n_normal
        self.bos: int = llama_cpp.llama_vocab_bos(pointer)
        self.eos: int = llama_cpp.llama_vocab_eos(pointer)

    @property
    def pointer(self) -> Any:
        """The ``llama_vocab *``."""
        return self._pointer

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text.

        Bytes that are not UTF-8 become U+FFFD first. ``add_special`` adds what the model wants
        around a text; ``parse_special`` reads "<|endoftext|>" as the token and not as its letters.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if self._normalizer:
            text = unicodedata.normalize(self._normalizer, text)  # type: ignore[arg-type]
        # a lone surrogate cannot be UTF-8 either
        data = text.encode("utf-8", "replace")
        room = len(data) + 2
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self._pointer, data, len(data), buffer, room, add_special, parse_special
        )
        if count < 0:
            raise ModelLoadError(f"llama_tokenize failed with {count} on {len(data)} bytes")
        return [int(token) for token in buffer[:count]]

    @functools.cached_property
    def _pieces(self) -> dict[int, bytes]:
        return {}

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; control tokens give none."""
        known = self._pieces.get(token)
        if known is not None:
            return known
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_token_to_piece(self._pointer, token, buffer, 256, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(
                self._pointer, token, buffer, len(buffer), 0, False
            )
        self._pieces[token] = buffer.raw[:length]
        return self._pieces[token]

    def detokenize(self, tokens: list[int]) -> bytes:
        """The bytes of several tokens."""
        return b"".join(map(self.piece, tokens))

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation (``<|endoftext|>`` and its like)."""
        return bool(llama_cpp.llama_vocab_is_eog(self._pointer, token))


@functools.cache
def _start_backend() -> None:
    route_logs()
    llama_cpp.llama_backend_init()


class Model:
    """A loaded model. A context manager; close its contexts first."""

    def __init__(
        self,
        path: Path,
        *,
        load: str = "mmap",
        vocab_only: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Check the header, then load.

        Args:
            path: a GGUF file.
            load: a key of :data:`LOAD_MODES`.
            vocab_only: only the vocabulary, no weights.
            progress: called with 0.0 to 1.0.

        Raises:
            GgufError: the header must not reach llama.cpp.
            ModelLoadError: llama.cpp refuses the model.
        """
        self.path = path
        self.header: GgufHeader = read_gguf_header(path)
        mode = LOAD_MODES[load]
        _start_backend()
        params = llama_cpp.llama_model_default_params()
        params.load_mode = mode.load_mode
        params.use_extra_bufts = mode.repack
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        if progress is not None:
            report = progress

            @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
            def on_progress(share: float, _user_data: Any) -> bool:
                report(share)
                return True

            params.progress_callback = on_progress
        forget_complaints()
        self._pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            raise ModelLoadError(f"{path}: llama.cpp cannot load it: {last_complaint()}")
        metadata = self.header.metadata
        types = metadata.get("tokenizer.ggml.token_type")
        unused = sum(1 for kind in types if kind == 5) if types is not None else 0
        pointer = llama_cpp.llama_model_get_vocab(self._pointer)
        self.vocab = Vocab(
            pointer,
            str(metadata.get("inferos.tokenizer.normalizer", "")),
            llama_cpp.llama_vocab_n_tokens(pointer) - unused,
        )

    @property
    def pointer(self) -> Any:
        """The ``llama_model *``."""
        return self._pointer

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained for."""
        return int(llama_cpp.llama_model_n_ctx_train(self._pointer))

    @property
    def n_layer(self) -> int:
        """Blocks."""
        return int(llama_cpp.llama_model_n_layer(self._pointer))

    @property
    def n_embd(self) -> int:
        """Width of the embedding."""
        return int(llama_cpp.llama_model_n_embd(self._pointer))

    @property
    def chat_template(self) -> str | None:
        """The file's own chat template."""
        template = self.header.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def close(self) -> None:
        """Free the weights."""
        if self._pointer:
            llama_cpp.llama_model_free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
