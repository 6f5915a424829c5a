"""How well a model predicts a text, and how far another is from it: perplexity, KL divergence.

Goes in: loaded models and tokens. Comes out: records of figures. Logits are scored batch by batch,
so that memory does not grow with the text, and holds at most two batches of logits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_row_score, inferos_score_job
from .context import Context, ContextParams
from .errors import EvaluateError
from .interrupt import interruptible
from .library import load_library
from .model import LlamaModel
from .new_context import Observer

Progress = Callable[[int, int], None]

# A context keeps a batch's logits twice, computed and copied out: at most 128 MB each.
_LOGIT_BYTES = 128 << 20
_LARGEST_BATCH = 512
_SMALLEST_BATCH = 32


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How a text is cut: windows of ``n_ctx`` tokens, each decoded into an empty cache.

    Only tokens from ``skip`` on are scored, so that each has some context; None skips the first
    half, as llama-perplexity does. ``max_windows`` None takes all that the text fills.
    """

    n_threads: int
    n_ctx: int = 512
    max_windows: int | None = None
    skip: int | None = None

    def __post_init__(self) -> None:
        if self.n_ctx < 2:
            raise EvaluateError(f"windows of {self.n_ctx} tokens; expected at least 2")
        if self.max_windows is not None and self.max_windows < 1:
            raise EvaluateError(f"{self.max_windows} windows; expected at least 1")
        if not 0 <= self.first_scored < self.n_ctx - 1:
            raise EvaluateError(
                f"skip {self.skip}: expected 0 to {self.n_ctx - 2} in windows of {self.n_ctx}"
            )

    @property
    def first_scored(self) -> int:
        """Position in the window of the first row of logits that is scored."""
        return self.n_ctx // 2 if self.skip is None else self.skip


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the cache it runs with."""

    model: LlamaModel
    type_k: str = "f16"
    type_v: str = "f16"


@dataclass(frozen=True, slots=True)
class Perplexity:
    """``log_probs`` (n_tokens,): natural logarithm of each scored token's probability."""

    log_probs: NDArray[np.float64]

    @property
    def value(self) -> float:
        """exp of the mean negative log probability."""
        return math.exp(-float(self.log_probs.mean()))

    @property
    def standard_error(self) -> float:
        """Of the value, from the spread of the log probabilities."""
        n = len(self.log_probs)
        return self.value * float(self.log_probs.std()) / math.sqrt(max(1, n - 1))


@dataclass(frozen=True, slots=True)
class Divergence:
    """A candidate compared with a reference, token by token.

    ``kl`` (n_tokens,) is KL(reference || candidate) in nats, ``same_top`` (n_tokens,) whether both
    have the same likeliest token.
    """

    reference: Perplexity
    candidate: Perplexity
    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    @property
    def n_tokens(self) -> int:
        """Tokens compared."""
        return len(self.kl)

    @property
    def mean_kl(self) -> float:
        """Mean over all tokens."""
        return float(self.kl.mean())

    @property
    def p99_kl(self) -> float:
        """The divergence that 99 of 100 tokens stay below."""
        return float(np.quantile(self.kl, 0.99))

    @property
    def top1(self) -> float:
        """Share of tokens with the same likeliest token."""
        return float(self.same_top.mean())


def cut_windows(
    model: LlamaModel, tokens: Sequence[int] | NDArray[Any], settings: WindowSettings
) -> NDArray[np.int32]:
    """Cut tokens into (n_windows, n_ctx), as llama-imatrix and llama-perplexity do.

    A last piece that does not fill a window is left out; if the model wants a token before a
    text, it replaces the first one of every window.

    Raises:
        EvaluateError: not one window is filled, it exceeds the model's own context, or a token
            lies outside its vocabulary.
    """
    n_ctx, vocab = settings.n_ctx, model.vocab
    if 0 < model.n_ctx_train < n_ctx:
        raise EvaluateError(
            f"windows of {n_ctx} tokens; {model.path.name} was trained on {model.n_ctx_train}"
        )
    n_windows = len(tokens) // n_ctx
    if settings.max_windows is not None:
        n_windows = min(n_windows, settings.max_windows)
    if n_windows == 0:
        raise EvaluateError(
            f"the text is too short: {len(tokens)} tokens do not fill a window of {n_ctx}"
        )
    windows = np.array(tokens[: n_windows * n_ctx], np.int64).reshape(n_windows, n_ctx)
    if windows.min() < 0 or windows.max() >= vocab.n_tokens:
        raise EvaluateError(
            f"token {int(windows.max())} is not in the vocabulary of {vocab.n_tokens} tokens"
        )
    if llama_cpp.llama_vocab_get_add_bos(vocab.pointer):
        windows[:, 0] = vocab.bos
    return windows.astype(np.int32)


def evaluation_batch(n_vocab: int, n_ctx: int) -> int:
    """Tokens per batch such that the logits of all of them stay in bounded memory."""
    batch = _LOGIT_BYTES // (4 * n_vocab) // 32 * 32
    return min(n_ctx, max(_SMALLEST_BATCH, min(batch, _LARGEST_BATCH)))


def evaluation_context(
    subject: Subject, settings: WindowSettings, observer: Observer | None = None
) -> Context:
    """A context for one window whose batches keep the logits of all tokens in bounded memory."""
    batch = evaluation_batch(subject.model.vocab.n_tokens, settings.n_ctx)
    params = ContextParams(
        n_ctx=settings.n_ctx, n_threads=settings.n_threads, n_batch=batch, n_outputs_max=batch,
        type_k=subject.type_k, type_v=subject.type_v,
    )  # fmt: skip
    return Context(subject.model, params, observer)


def decode_window(
    contexts: Sequence[Context], window: NDArray[np.int32], first_output: int
) -> Iterator[tuple[int, int]]:
    """Decode one window into each context, a batch at a time, from an empty cache.

    Yields:
        After each batch with logits: the position of the first row of logits, and how many.
    """
    step = min(context.n_batch for context in contexts)
    for context in contexts:
        context.trim(0)
    for start in range(0, len(window), step):
        batch = window[start : start + step]
        n_outputs = min(len(batch), max(0, start + len(batch) - first_output))
        for context in contexts:
            context.decode(batch, start, outputs=n_outputs)
        if n_outputs:
            yield start + len(batch) - n_outputs, n_outputs


def evaluate_perplexity(
    subject: Subject,
    tokens: Sequence[int] | NDArray[Any],
    settings: WindowSettings,
    progress: Progress | None = None,
) -> Perplexity:
    """Score a text.

    Args:
        subject: the model.
        tokens: the text.
        settings: windows and threads.
        progress: called with windows done and in all.

    Raises:
        EvaluateError: see :func:`cut_windows`; or the model's results are not finite.
        DecodeError: decoding failed or was interrupted.
    """
    scores = _score([subject], tokens, settings, progress)
    return Perplexity(np.ascontiguousarray(scores["reference_log_prob"]))


def compare_models(
    reference: Subject,
    candidate: Subject,
    tokens: Sequence[int] | NDArray[Any],
    settings: WindowSettings,
    progress: Progress | None = None,
) -> Divergence:
    """Run two models side by side over a text and compare all their probabilities.

    Args:
        reference: the model to compare with.
        candidate: the other; its vocabulary must have the same size.
        tokens: the text.
        settings: windows and threads.
        progress: called with windows done and in all.

    Raises:
        EvaluateError: vocabularies differ, or see :func:`evaluate_perplexity`.
        DecodeError: decoding failed or was interrupted.
    """
    scores = _score([reference, candidate], tokens, settings, progress)
    return Divergence(
        Perplexity(np.ascontiguousarray(scores["reference_log_prob"])),
        Perplexity(np.ascontiguousarray(scores["candidate_log_prob"])),
        np.ascontiguousarray(scores["kl"]),
        scores["reference_top"] == scores["candidate_top"],
    )


def _score(
    subjects: Sequence[Subject],
    tokens: Sequence[int] | NDArray[Any],
    settings: WindowSettings,
    progress: Progress | None,
) -> NDArray[Any]:
    """One record of :data:`_SCORE` per scored token, in the order of the text."""
    models = [subject.model for subject in subjects]
    sizes = [model.vocab.n_tokens for model in models]
    if len(set(sizes)) > 1:
        raise EvaluateError(
            f"{models[1].path.name} has {sizes[1]} tokens in its vocabulary, "
            f"{models[0].path.name} has {sizes[0]}: they cannot be compared"
        )
    windows = cut_windows(models[0], tokens, settings)
    if len(models) > 1:
        cut_windows(models[1], tokens, settings)  # its own limits
    found: list[NDArray[Any]] = []
    with ExitStack() as stack:
        contexts = [stack.enter_context(evaluation_context(s, settings)) for s in subjects]
        stack.enter_context(interruptible())
        for number, window in enumerate(windows, 1):
            for start, n in decode_window(contexts, window, settings.first_scored):
                # the last token's successor is not in the window
                n_rows = min(n, len(window) - 1 - start)
                if n_rows:
                    rows = [context.logits_rows(n)[:n_rows] for context in contexts]
                    targets = window[start + 1 : start + 1 + n_rows]
                    found.append(score_rows(rows, targets, settings.n_threads))
            if progress:
                progress(number, len(windows))
    scores = np.concatenate(found)
    for field, model in zip(("reference_log_prob", "candidate_log_prob"), models, strict=False):
        if not np.isfinite(scores[field]).all():
            raise EvaluateError(f"{model.path.name}: computes probabilities that are not numbers")
    return scores


_SCORE = np.dtype(inferos_row_score)
_REFUSALS = {
    Status.BAD_ROW: "a token lies outside the vocabulary, or a row outside the logits",
    Status.NO_MEMORY: "not enough memory to score the logits",
}


def score_rows(
    logits: Sequence[NDArray[np.float32]],
    targets: NDArray[np.int32],
    n_threads: int,
    rows: NDArray[np.int32] | None = None,
) -> NDArray[Any]:
    """Score tokens that follow rows of logits, in double precision; no row is copied.

    Args:
        logits: the reference's and, if there is one, the candidate's; (n_rows, n_vocab) each.
        targets: (n_scores,) tokens whose probabilities are wanted.
        n_threads: threads; they share the targets.
        rows: (n_scores,) the row of logits that each target follows, in any order, and several
            times if need be; None for one target per row.

    Returns:
        (n_scores,) records: ``reference_log_prob``, ``candidate_log_prob``, ``kl``,
        ``reference_top``, ``candidate_top``; without a candidate its fields are 0.

    Raises:
        EvaluateError: shapes, rows or tokens that do not match.
    """
    given = [np.ascontiguousarray(one, np.float32) for one in logits]
    wanted = np.ascontiguousarray(targets, np.int32)
    if any(one.ndim != 2 or one.shape != given[0].shape for one in given):
        raise EvaluateError(f"cannot compare logits of {[one.shape for one in given]}")
    n_rows, n_vocab = given[0].shape
    places = None if rows is None else np.ascontiguousarray(rows, np.int32)
    if wanted.shape != ((n_rows,) if places is None else places.shape) or wanted.ndim != 1:
        what = f"{n_rows} rows of logits" if places is None else f"{places.size} numbers of rows"
        raise EvaluateError(f"{wanted.size} tokens for {what}")
    scores = np.empty(wanted.size, _SCORE)
    job = inferos_score_job(
        given[0].ctypes.data,
        given[1].ctypes.data if len(given) > 1 else None,
        wanted.ctypes.data,
        None if places is None else places.ctypes.data,
        wanted.size, n_rows, n_vocab, n_threads,
    )  # fmt: skip
    status = load_library().inferos_score_rows(
        ctypes.byref(job), scores.ctypes.data_as(ctypes.POINTER(inferos_row_score))
    )
    if status != 0:
        raise EvaluateError(_REFUSALS.get(status, f"status {status}"))
    return scores
