"""Own a llama.cpp model and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import llama_cpp

from .added_tokens import AddedTokens, hidden_texts
from .attention_windows import DISTANCES
from .backend import computed_windows, exact_context, file_layouts, kernel_status
from .errors import GgufError, ModelChanged, ModelLoadError
from .gguf_file import SPECIAL_NAMES, GgufHeader, read_gguf_header
from .graph_check import check_graph, is_own, read_model_header
from .logs import forget_complaints, last_complaint, route_last_words, route_logs
from .lora_adapter import LoraAdapter
from .mapped_files import forget_mapped, note_mapped
from .overrides import key_overrides
from .owner import Owner
from .text_rules import TextRules, read_text_rules
from .trial import try_in_child
from .unigram_tokenizer import UnigramTokenizer, check_unigram, read_unigram
from .usual_split import SPLIT_KEY, split_note, usual_split
from .watched_file import WatchedFile

# llama_token_type
_CONTROL, _UNUSED, _BYTE = 3, 5, 6
#: Unknown, control and unused tokens.
_NO_TEXT = frozenset({2, _CONTROL, _UNUSED})
_UNKNOWN_KEY = "tokenizer.ggml.unknown_token_id"
_INT32_MIN = -(1 << 31)
# texts of up to this many characters per token, plus these, are tokenized whole
_USUAL_LENGTH = 16
_SHORT_TEXT = 4096
# characters that a Unicode normal form may merge into one: a letter with three marks
_MOST_COMPOSED = 4


@dataclass(frozen=True, slots=True)
class LoadMode:
    """How weights come into memory: llama.cpp's ``load_mode`` and whether it may repack them."""

    load_mode: int
    repack: bool

    @property
    def copies(self) -> bool:
        """Whether the weights are private copies."""
        return self.repack


#: ``--load``: mmap keeps the file's own pages, shared between processes; fast copies the weights
#: into llama.cpp's repacked layouts, without also mapping the file; locked locks the file's own
#: pages; direct copies as fast does, bypassing the page cache.
LOAD_MODES: dict[str, LoadMode] = {
    "mmap": LoadMode(llama_cpp.LLAMA_LOAD_MODE_MMAP, repack=False),
    "fast": LoadMode(llama_cpp.LLAMA_LOAD_MODE_NONE, repack=True),
    "locked": LoadMode(llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK, repack=False),
    "direct": LoadMode(llama_cpp.LLAMA_LOAD_MODE_DIRECT_IO, repack=True),
}


class Vocab:
    """A model's vocabulary: text to tokens and back. Lives as long as its model."""

    def __init__(self, pointer: Any, header: GgufHeader, rules: TextRules) -> None:
        self._pointer = pointer
        self._header = header
        self._rules = rules
        metadata = header.metadata
        # if a vocabulary names none, llama.cpp takes Falcon's 11 or T5's 1
        self._names_end = "tokenizer.ggml.eos_token_id" in metadata or metadata.get(
            "tokenizer.ggml.model"
        ) not in ("gpt2", "t5")
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(pointer)
        types = metadata.get("tokenizer.ggml.token_type", ())
        self.n_normal = self.n_tokens - sum(1 for kind in types if kind == _UNUSED)
        self._finds_added = metadata.get("tokenizer.ggml.model") in ("gpt2", "t5")
        # llama.cpp's unigram has no byte fallback
        byte_fallback = metadata.get("tokenizer.ggml.model") == "t5" and _BYTE in types
        self._unknown = int(metadata.get(_UNKNOWN_KEY, -1)) if byte_fallback else -1
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
        around a text; ``parse_special`` reads "<|endoftext|>" as the token, not as its letters.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        # a lone surrogate cannot be UTF-8 either
        text = text.encode("utf-8", "replace").decode()
        if not self._finds_added:
            text = self._rules.apply(text, parse_special=parse_special)
            return self._tokenize(text.encode(), add_special, parse_special)
        tokens: list[int] = []
        for part in self._added.split(text, parse_special=parse_special):
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += self._tokenize_part(part, parse_special)
        if not add_special:
            return tokens
        around = self._tokenize(b"", True, False)
        # bos is added before the text, eos after it
        n_before = int(llama_cpp.llama_vocab_get_add_bos(self._pointer))
        return around[:n_before] + tokens + around[n_before:]

    def _tokenize_part(self, text: str, parse_special: bool) -> list[int]:
        """Tokens of a part between added tokens."""
        parse_special = parse_special and not self._added.is_complete
        tokens = self._tokenize(text.encode(), False, parse_special)
        if self._unknown >= 0 and self._unknown in tokens:
            return self._unigram.encode(text, parse_special=parse_special)
        return tokens

    def fewest_tokens(self, text: str | bytes, most: int) -> int:
        """A lower bound on a text's tokens, if it is above ``most``; else 0.

        A text that is far too long is recognised by its length, or else by its beginning: the cost
        is at most a few times ``most`` tokens, however long it is.
        """
        n_tried = _USUAL_LENGTH * most + _SHORT_TEXT
        if len(text) <= n_tried:
            return 0
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        fewest = self._least_characters(text) // self._longest
        if fewest > most:
            return fewest
        while n_tried < len(text):
            # cutting a text may change its tokens: only a wide excess decides
            if len(self.tokenize(text[:n_tried])) > 2 * most + _SHORT_TEXT:
                return most + 1
            n_tried *= 2
        return 0

    def _least_characters(self, text: str) -> int:
        """Fewest characters that may remain of a text when it is cut into tokens."""
        if self._header.metadata.get("tokenizer.ggml.model") == "t5" or self._rules.may_shorten:
            return 0  # many blanks become one, as do many letters without a piece
        return len(text) // (_MOST_COMPOSED if self._rules.normalizer else 1)

    @functools.cached_property
    def _longest(self) -> int:
        """Characters of the longest token's spelling, which bounds the text a token stands for."""
        tokens = self._header.metadata.get("tokenizer.ggml.tokens", ())
        return max(1, max(map(len, tokens), default=1))

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(data) + 2
        while True:
            buffer = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self._pointer, data, len(data), buffer, room, add_special, parse_special
            )
            if count >= 0:
                return [int(token) for token in buffer[:count]]
            # a normalizer may write several characters for one
            if count == _INT32_MIN or -count <= room:
                raise ModelLoadError(f"llama_tokenize failed with {count} on {len(data)} bytes")
            room = -count

    @functools.cached_property
    def _added(self) -> AddedTokens:
        return AddedTokens.read(self._header, self._pointer, self._rules)

    @functools.cached_property
    def _hidden(self) -> dict[int, bytes]:
        return hidden_texts(self._header, self._rules)

    @functools.cached_property
    def _unigram(self) -> UnigramTokenizer:
        return UnigramTokenizer(read_unigram(self._header))

    @functools.cached_property
    def _pieces(self) -> dict[int, bytes]:
        return dict(self._hidden)

    @functools.cached_property
    def _ends(self) -> dict[int, bool]:
        return {}

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
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

    def plain_pieces(self) -> tuple[list[bytes], list[int]]:
        """The bytes of every token, not cached, and the tokens that stand for no text."""
        types = self._header.metadata.get("tokenizer.ggml.token_type", ())
        room = 256
        buffer = ctypes.create_string_buffer(room)
        pieces: list[bytes] = []
        for token in range(self.n_tokens):
            length = llama_cpp.llama_token_to_piece(self._pointer, token, buffer, room, 0, False)
            if length < 0:
                room = -length
                buffer = ctypes.create_string_buffer(room)
                length = llama_cpp.llama_token_to_piece(
                    self._pointer, token, buffer, room, 0, False
                )
            pieces.append(buffer.raw[:length])
        for token, text in self._hidden.items():
            pieces[token] = text
        no_text = [
            token for token, kind in enumerate(types)
            if kind in _NO_TEXT and token not in self._hidden
        ]  # fmt: skip
        no_text += [token for token, piece in enumerate(pieces) if not piece]
        return pieces, no_text

    def ends(self) -> list[int]:
        """The tokens that end a generation, the vocabulary's own first."""
        found = [
            token for token in range(self.n_tokens)
            if llama_cpp.llama_vocab_is_eog(self._pointer, token) and self.is_end(token)
        ]  # fmt: skip
        return sorted(found, key=lambda token: token != self.eos)

    def detokenize(self, tokens: list[int]) -> bytes:
        """The bytes of several tokens."""
        return b"".join(map(self.piece, tokens))

    @property
    def has_end(self) -> bool:
        """Whether there is a token that ends a generation."""
        return self.eos >= 0

    @property
    def opening(self) -> int | None:
        """What stands before a text that nothing precedes: "bos", or "eos" in its place.

        None where the file names neither.
        """
        named = (self._header.metadata.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos"))
        return next((token for token in named if isinstance(token, int)), None)

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation (``<|endoftext|>`` and the like)."""
        known = self._ends.get(token)
        if known is None:
            named = token != self.eos or self._names_end
            known = named and bool(llama_cpp.llama_vocab_is_eog(self._pointer, token))
            self._ends[token] = known
        return known

    def special_texts(self) -> list[str]:
        """Every special (control) token, as it is spelled."""
        metadata = self._header.metadata
        kinds = metadata.get("tokenizer.ggml.token_type", ())
        is_special = (kind == _CONTROL and i not in self._hidden for i, kind in enumerate(kinds))
        texts = metadata.get("tokenizer.ggml.tokens")
        return [text for text in texts.chosen(is_special) if text] if texts else []

    def special_text(self, name: str) -> str:
        """The spelling of the "bos", "eos", "unk", "pad", "sep", "cls" or "mask" token, or ""."""
        metadata = self._header.metadata
        # llama.cpp has its own default if the file does not name one
        token = metadata.get(f"tokenizer.ggml.{SPECIAL_NAMES.get(name, name)}_token_id")
        if not isinstance(token, int):
            return ""
        return next(islice(metadata.get("tokenizer.ggml.tokens", ()), token, None), "")


@functools.cache
def _start_backend() -> None:
    route_logs()
    route_last_words()
    llama_cpp.llama_backend_init()


def _read_header(path: Path, vocab_only: bool) -> GgufHeader:
    if not vocab_only:
        return read_model_header(path)
    header = read_gguf_header(path)
    check_graph(header, vocab_only=True)
    return header


class LlamaModel(Owner):
    """A loaded model. A context manager; close its contexts first."""

    def __init__(
        self,
        path: Path,
        *,
        load: str = "mmap",
        native: bool = False,
        vocab_only: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Check the header, then load.

        Args:
            path: a GGUF file.
            load: a key of :data:`LOAD_MODES`.
            native: use our own kernels where possible; see :attr:`kernels`.
            vocab_only: only the vocabulary, no weights.
            progress: called with 0.0 to 1.0.

        Raises:
            GgufError: the header must not reach llama.cpp.
            ModelLoadError: llama.cpp refuses the model.
        """
        self.path = path
        #: What the user should know about how the file was read.
        self.notes: tuple[str, ...] = ()
        self._pointer: Any = None
        try:
            self._file = WatchedFile(path)
        except FileNotFoundError:
            raise GgufError(f"{path}: no such file") from None
        except OSError as error:
            raise GgufError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self.header = _read_header(path, vocab_only)
            check_unigram(self.header)
            rules = read_text_rules(self.header)
            if not is_own(self.header):
                try_in_child(path, vocab_only=vocab_only)
            mode = LOAD_MODES[load]
            self.kernels = kernel_status(native)
            #: Adapters by the names that contexts use them by; it frees them.
            self.adapters: dict[str, LoraAdapter] = {}
            #: Layers with windows, if our kernels compute them.
            self.windows = computed_windows(self.kernels, self.header)
            self._load(mode, vocab_only, progress)
            pointer = llama_cpp.llama_model_get_vocab(self._pointer)
            self.vocab = Vocab(pointer, self.header, rules)
            if mode.copies or vocab_only:
                self._file.close()
            else:
                note_mapped(self, path)
        except BaseException:
            self.close()
            raise

    def _load(
        self, mode: LoadMode, vocab_only: bool, progress: Callable[[float], None] | None
    ) -> None:
        _start_backend()
        params = llama_cpp.llama_model_default_params()
        params.load_mode = mode.load_mode
        kinds = {tensor.type.name for tensor in self.header.tensors}
        # our kernels read the file's own layout and could not use copies in another
        params.use_extra_bufts = mode.repack and bool(file_layouts(kinds, self.kernels))
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        split = usual_split(self.header)
        overrides: dict[str, str | float] = {}
        if split:
            overrides[SPLIT_KEY] = split
            self.notes = (split_note(self.header, split),)
        if self.windows is not None:
            overrides |= DISTANCES
        if overrides:
            params.kv_overrides = key_overrides(overrides)
        if progress is not None:
            report = progress

            @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
            def on_progress(share: float, _user_data: Any) -> bool:
                report(share)
                return True

            params.progress_callback = on_progress
        forget_complaints()
        self._pointer = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        changed = self._file.complaint()
        if not changed and not self._file.is_at(self.path):
            changed = f"{self.path}: was replaced by another file while it was loaded"
        if changed:
            raise ModelLoadError(f"{changed}; load it again")
        if not self._pointer:
            raise ModelLoadError(f"{self.path}: llama.cpp cannot load it: {last_complaint()}")

    def check(self) -> None:
        """Check that the file has not changed since it was loaded. Costs a microsecond.

        Raises:
            ModelChanged: its mapped pages have changed.
        """
        complaint = self._file.complaint()
        if complaint:
            raise ModelChanged(
                f"{complaint}; nothing computed since can be trusted: load the model again"
            )

    @property
    def pointer(self) -> Any:
        """The ``llama_model *``."""
        return self._pointer

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained for, as far as they are computed exactly."""
        trained = int(llama_cpp.llama_model_n_ctx_train(self._pointer))
        return min(trained, exact_context(self.kernels, self.header))

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
            forget_mapped(self)
        self._file.close()
