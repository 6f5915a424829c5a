"""The Python API: load a model, generate, stream, chat, answer many prompts, score and embed texts.

Goes in: what a user calls a model, and the settings records of the command line. Comes out: text,
records, or iterators of them. Nothing is printed: notes and llama.cpp's log go to the loggers
``infer_os`` and ``infer_os.llama``.

Threads: a model does one thing at a time. Calls from other threads wait their turn; a call that
would wait for a stream of its own thread raises ModelBusy. A model may be used from any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .native.interrupt import is_main_thread
from .native.owner import Owner
from .runtime.arguments import (
    adapter_or_first,
    many,
    path_text,
    prompt_text,
    record_or,
    text_named,
)
from .runtime.chat.api_chat import Chat as Chat
from .runtime.chat.framing import choose_frame
from .runtime.chat.session import Session
from .runtime.errors import RuntimeFailure
from .runtime.exclusive import Stream, Turns
from .runtime.generate import Completion, FinishReason, Generation, finished, stream_text
from .runtime.prompt import tokenize
from .runtime.settings import (
    CHAT_SAMPLING,
    CHAT_STOPS,
    EngineSettings,
    SamplingSettings,
    StopSettings,
)
from .store import opening
from .store.hearing import (
    LogCallback,
    ProgressCallback,
    answers,
    heard,
    listening,
    log_reporter,
    warn,
)
from .store.wish import ModelWish

if TYPE_CHECKING:
    from .runtime.batch.batch_engine import BatchEngine
    from .runtime.batch.records import BatchInput, Result
    from .runtime.batch.settings import BatchSettings
    from .runtime.interface import Engine
    from .runtime.scoring.embedder import Embedder, EmbedInput, EmbedResult
    from .runtime.scoring.score_records import ScoreInput, ScoreResult
    from .runtime.scoring.scorer import Scorer
    from .runtime.scoring.settings import ScoringSettings


def load(
    model: str | os.PathLike[str],
    *,
    settings: EngineSettings | None = None,
    type: str = "",
    loras: Sequence[str] = (),
    adapters: Sequence[str] = (),
    on_log: LogCallback | None = None,
    on_progress: ProgressCallback | None = None,
) -> Model:
    """Load a model; close it at the end, or use ``with``.

    Args:
        model: a GGUF file; or a folder, a catalog name or a hub id, converted once and cached.
        settings: how; ``draft`` may also be a model's name or ``auto``.
        type: what a folder or a name is converted to; empty for the cached type, else q4_0.
        loras: LoRA adapters to add when it is converted: DIR or ID, with :SCALE behind it or not.
        adapters: LoRA adapters to load beside the weights: DIR, ID or FILE, likewise, with NAME= in
            front or not. Texts are written with the first one unless a call names another.
        on_log: called with log records while the model is open, even those of other models. The
            level of the logger ``infer_os`` decides which (warnings, by default).
        on_progress: called while files are downloaded, converted or prefetched.

    Raises:
        ConvertError, ConfigError: there is no such model, or it cannot be converted.
        SettingsError: an argument that cannot work.
        MemoryShortage: the model does not fit.
        NativeError: a file that cannot be used.
    """
    settings = record_or(settings, EngineSettings(), "settings")
    wish = ModelWish(path_text(model, "model"), text_named(type, "type"), loras, adapters)
    with ExitStack() as stack:
        if on_log is not None:
            stack.enter_context(listening(on_log))
        report = log_reporter(on_progress)
        path, settings = opening.find_files(wish, settings, report)
        engine = opening.open_file(path, settings, report)
        stack.callback(engine.close)
        return Model(
            engine, partial(opening.batch_in_place, engine, settings), stack.pop_all().close,
            partial(opening.scorer_in_place, engine, settings),
            partial(opening.embedder_in_place, engine, settings),
        )  # fmt: skip


class Model(Owner):
    """A loaded model. A context manager; for any thread, one generation at a time."""

    def __init__(
        self,
        engine: Engine,
        open_batch: Callable[[BatchSettings], BatchEngine],
        close: Callable[[], None] | None = None,
        open_scorer: Callable[[ScoringSettings], Scorer] | None = None,
        open_embedder: Callable[[str], Embedder] | None = None,
    ) -> None:
        """Made by :func:`load`.

        Args:
            engine: the model for one sequence.
            open_batch: opens a context of many sequences on the same weights.
            close: what :meth:`close` does at the end; else the engine is closed.
            open_scorer, open_embedder: open such a context to score texts, or to embed them.
        """
        self._engine, self._open_batch, self._open_scorer = engine, open_batch, open_scorer
        self._open_embedder = open_embedder
        self._free = close or engine.close
        self._turns = Turns()
        #: What the user should know about how it was loaded; also logged as warnings.
        self.notes = engine.info.notes
        #: The latest finished generation, in any thread.
        self.last: Completion | None = None
        warn(self.notes)

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return self._engine.info.path

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return self._engine.info.adapters

    @property
    def n_ctx(self) -> int:
        """Tokens of context: prompt and text together."""
        return self._engine.n_ctx

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, as :meth:`generate` counts them."""
        with self._turns.hold("tokenize"):
            return self._engine.vocab.tokenize(prompt_text(text, "text"))

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of tokens, of which a part of a character becomes U+FFFD."""
        with self._turns.hold("detokenize"):
            pieces = (self._engine.vocab.piece(token) for token in tokens)
            return b"".join(pieces).decode("utf-8", "replace")

    def generate(
        self,
        prompt: str,
        *,
        sampling: SamplingSettings | None = None,
        stops: StopSettings | None = None,
        adapter: str | None = None,
    ) -> Completion:
        """Continue a prompt with the adapter of that name; ``off``: no adapter, None: the first.

        Raises:
            PromptError: it is not a text, empty, or longer than the context.
            SettingsError: no adapter of that name is loaded.
            NotFinite: the model computes NaN or infinity.
            KeyboardInterrupt: Ctrl-C, in the main thread.
            ModelBusy, ModelClosed: see the module.
        """
        state, pieces = Generation(), list[str]()
        with self._stream(prompt, sampling, stops, adapter, state, "generation") as chunks:
            pieces.extend(chunks)
        return finished(state, "".join(pieces))

    def stream(
        self,
        prompt: str,
        *,
        sampling: SamplingSettings | None = None,
        stops: StopSettings | None = None,
        adapter: str | None = None,
    ) -> Stream[str]:
        """Continue a prompt, chunk by chunk; closing the stream stops it.

        Other threads wait until it is exhausted or closed; ``last`` then says how it ended.

        Raises:
            As :meth:`generate`: at once for arguments of the wrong type, else with the first chunk.
        """
        return self._stream(prompt, sampling, stops, adapter, Generation(), "stream")

    def batch(
        self,
        records: Iterable[BatchInput],
        *,
        sampling: SamplingSettings | None = None,
        stops: StopSettings | None = None,
        settings: BatchSettings | None = None,
        ordered: bool = False,
    ) -> Stream[Result]:
        """Answer many prompts, many sequences in each decode; results come as they finish.

        A second context uses the model's weights, after the first one's cache is freed, so that the
        memory is that of a batch alone. What was held of a chat is computed again afterwards.
        A record that cannot be answered becomes a result with an error.

        Args:
            records: prompts, or records; taken as there is room for them.
            sampling: where a record says nothing.
            stops: likewise.
            settings: how many at once (by default that is measured), a prefix, and so on.
            ordered: results in the order of the records.

        Raises:
            SettingsError, PromptError: an argument of the wrong type, at once.
            MemoryShortage: not even one sequence fits.
            ModelBusy, ModelClosed: see the module; these with the first result.
        """
        from .runtime.batch.records import parsed_prompts
        from .runtime.batch.settings import BatchSettings

        how = record_or(settings, BatchSettings(), "settings")
        parsed = parsed_prompts(
            many(records, "records"), record_or(sampling, SamplingSettings(), "sampling"),
            record_or(stops, StopSettings(), "stops"), tells=bool(how.logprobs),
        )  # fmt: skip
        results = answers(lambda: self._open_batch(how), parsed, ordered=ordered)
        return Stream(self._turns, "batch", results)

    def score(
        self,
        texts: Iterable[ScoreInput],
        *,
        settings: ScoringSettings | None = None,
        ordered: bool = True,
    ) -> Stream[ScoreResult]:
        """Tell how likely texts are, or continuations of contexts; many in each decode.

        A context is made for it, as :meth:`batch` does. A text that cannot be scored becomes a
        result with an error.

        Args:
            texts: texts, pairs of a context and its continuation, or records; taken as there is
                room for them.
            settings: how many at once, and whether sums are enough.
            ordered: results in the order of the texts; else as they are finished.

        Raises:
            SettingsError, PromptError: an argument of a wrong type, at once.
            MemoryShortage: not even one sequence fits.
            ModelBusy, ModelClosed: see the module; these with the first result.
        """
        from .runtime.scoring.score_records import parsed_texts
        from .runtime.scoring.settings import ScoringSettings

        if (scorer := self._open_scorer) is None:
            raise RuntimeFailure("this model was made without a way to score texts")
        how = record_or(settings, ScoringSettings(), "settings")
        parsed = parsed_texts(many(texts, "texts"))
        results = answers(lambda: scorer(how), parsed, ordered=ordered)
        return Stream(self._turns, "score", results)

    def embed(self, texts: Iterable[EmbedInput], *, pooling: str = "mean") -> Stream[EmbedResult]:
        """Make a vector of length 1 of each text, in their order, from the model's last layer.

        A context is made for it; a text that is empty or too long becomes a result with an error.

        Args:
            texts: texts, or records with ``text``; taken one after the other.
            pooling: ``mean`` of a text's tokens, or its ``last`` one.

        Raises:
            As :meth:`score`; SettingsError as well for another pooling, at once.
        """
        from .runtime.scoring.embedder import check_pooling, texts_to_embed

        if (embedder := self._open_embedder) is None:
            raise RuntimeFailure("this model was made without a way to embed texts")
        check_pooling(pooling)
        parsed = texts_to_embed(many(texts, "texts"))
        results = answers(lambda: embedder(pooling), parsed, ordered=False)
        return Stream(self._turns, "embed", results)

    def chat(
        self,
        *,
        system: str = "",
        style: str = "",
        sampling: SamplingSettings | None = None,
        stops: StopSettings | None = None,
        adapter: str | None = None,
    ) -> Chat:
        """Begin a conversation. A model may have several; each recomputes what others displaced.

        Args:
            system: a text that opens it.
            style: how messages are framed; by default the model's own template, else its style.
            sampling: how replies are drawn; by default with a repeat penalty of 1.1.
            stops: when they end; by default after 256 tokens.
            adapter: the name of the adapter to write with, as for :meth:`generate`.

        Raises:
            SettingsError: no such style or adapter, or an argument of the wrong type.
            TemplateFailure: the model's chat template was requested and cannot be used.
            PromptError: the system prompt alone fills the context.
        """
        system, style = text_named(system, "system"), text_named(style, "style")
        sampling = record_or(sampling, CHAT_SAMPLING, "sampling")
        stops = record_or(stops, CHAT_STOPS, "stops")
        adapter_or_first(adapter, self.adapters)
        with self._turns.hold("chat"):
            frame, notes = choose_frame(self._engine, style, system)
            session = Session(self._engine, frame, system)
        warn(notes)
        return Chat(self, session, sampling, stops, adapter)

    def close(self) -> None:
        """End what is running, in any thread, then free the context and the weights."""
        if self._turns.close():
            self._free()

    # ---- building blocks of the methods and of Chat

    @contextmanager
    def using(self, what: str, adapter: str | None = None) -> Iterator[None]:
        """A turn of the model with an adapter, for anything but a generation."""
        chosen = adapter_or_first(adapter, self.adapters)
        with self._turns.hold(what):
            self._engine.use_adapter(chosen)
            yield

    def spoken(
        self, what: str, chunks: Generator[str, None, None], generation: Callable[[], Generation],
        adapter: str | None,
    ) -> Stream[str]:  # fmt: skip
        """A stream of text in a turn of the model; ``generation`` describes it at the end."""
        chosen = adapter_or_first(adapter, self.adapters)
        return Stream(self._turns, what, self._told(chunks, generation, chosen))

    def _stream(
        self, prompt: str, sampling: SamplingSettings | None, stops: StopSettings | None,
        adapter: str | None, state: Generation, what: str,
    ) -> Stream[str]:  # fmt: skip
        prompt = prompt_text(prompt)
        how = record_or(sampling, SamplingSettings(), "sampling")
        end = record_or(stops, StopSettings(), "stops")

        def chunks() -> Generator[str, None, None]:
            engine = self._engine
            tokens = tokenize(engine.vocab, prompt, engine.n_ctx)
            with closing(stream_text(engine, tokens, how, end, state)) as text:
                yield from text

        return self.spoken(what, chunks(), lambda: state, adapter)

    def _told(
        self,
        chunks: Generator[str, None, None],
        generation: Callable[[], Generation],
        adapter: str,
    ) -> Generator[str, None, None]:
        def end(text: str) -> None:
            self.last = finished(generation(), text)

        self._engine.use_adapter(adapter)
        yield from heard(chunks, self._engine.take_notes, end)
        ended = self.last.finish_reason if self.last is not None else None
        if ended is FinishReason.INTERRUPT and is_main_thread():
            # the engine ends a text cleanly on Ctrl-C; the program must still see it
            raise KeyboardInterrupt
