"""How well a file predicts a text, and how far it is from a reference: per file and KV cache.

Goes in: GGUF files, tokens, caches. Come out: measurements. A cache of one type is evaluated batch
by batch; one in stages token by token, as a conversation fills it, over fewer windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.fields import check_fields, whole
from infer_os.native.attention_windows import read_windows
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import (
    Divergence,
    Perplexity,
    Subject,
    WindowSettings,
    compare_models,
    cut_windows,
    evaluate_perplexity,
    score_rows,
)
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import BenchError, SettingsError
from infer_os.runtime.kv.schedule import KvSchedule, schedule_from_spec
from infer_os.runtime.plan.shapes import header_kv_model
from infer_os.runtime.settings import MOST_THREADS, EngineSettings

from .rows import Label, Measurement

Progress = Callable[[int, int], None]
#: Windows that are evaluated token by token.
STAGED_WINDOWS = 8
_TOKENS_KEY = "tokenizer.ggml.tokens"


_QUALITY = {
    "window": whole(16, 1 << 16, "16 to 65536 tokens"),
    "windows": whole(1, 1 << 20),
    "threads": whole(0, MOST_THREADS, f"1 to {MOST_THREADS}"),
}


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """Windows of ``window`` tokens, whose second halves are scored; at most ``windows`` of them."""

    window: int = 512
    windows: int = 32
    threads: int = 0

    def __post_init__(self) -> None:
        check_fields(self, _QUALITY, SettingsError)

    @property
    def n_threads(self) -> int:
        """Threads: as requested, else one per usable core."""
        return EngineSettings(threads=self.threads).n_threads

    def cut(self, most: int | None = None) -> WindowSettings:
        """As the evaluation takes them, with at most ``most`` windows."""
        windows = self.windows if most is None else min(most, self.windows)
        return WindowSettings(self.n_threads, self.window, windows)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to evaluate, and the name that its rows get as ``type``."""

    name: str
    path: Path


def check_schedules(
    header: GgufHeader, kvs: Sequence[str], window: int
) -> tuple[dict[str, KvSchedule], tuple[str, ...]]:
    """The schedules of the caches for a window, and notes.

    Raises:
        SettingsError: a cache that the model cannot have, or that ends before the window.
    """
    schedules: dict[str, KvSchedule] = {}
    notes: list[str] = []
    for kv in kvs:
        schedule, said = schedule_from_spec(kv, header_kv_model(header, 1), window)
        if schedule.n_ctx < window:
            raise SettingsError(
                f"--kv {kv}: it ends at {schedule.n_ctx} tokens, a window has {window}; let its "
                "last stage reach further, or lower --window"
            )
        schedules[kv] = schedule
        notes += said
    return schedules, tuple(notes)


def _model(path: Path, *, own: bool = False, vocab_only: bool = False) -> LlamaModel:
    """A file with llama.cpp's own kernels; with ours for ``own``, or where a window needs them."""
    windows = read_windows(read_gguf_header(path))
    return LlamaModel(path, native=own or windows is not None, vocab_only=vocab_only)


def check_vocabularies(reference: Path, candidate: Path) -> None:
    """Check that both files have the same tokens.

    Raises:
        BenchError: they do not; names the first token that differs.
        GgufError: one of them cannot be used.
    """
    one, other = (
        list(read_gguf_header(path).metadata.get(_TOKENS_KEY, ()))
        for path in (reference, candidate)
    )
    if len(one) != len(other):
        raise BenchError(
            f"--reference {reference}: it has another vocabulary ({len(one)} tokens) than "
            f"{candidate} ({len(other)}): they cannot be compared"
        )
    for i, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if mine != theirs:
            raise BenchError(
                f"--reference {reference}: it has another vocabulary than {candidate}: token {i} "
                f"is {mine!r} there and {theirs!r} here; they cannot be compared"
            )


def text_tokens(path: Path, text: str, settings: QualitySettings) -> list[int]:
    """The text as tokens of a file's vocabulary.

    Raises:
        EvaluateError: it does not fill a window, or the model's context is smaller than one.
    """
    with _model(path, vocab_only=True) as model:
        tokens = model.vocab.tokenize(text, parse_special=False)
        cut_windows(model, tokens, settings.cut())
    return tokens


def measure_quality(
    candidate: Candidate,
    reference: Path | None,
    schedules: dict[str, KvSchedule],
    tokens: Sequence[int],
    settings: QualitySettings,
    steps: Callable[[str], Progress | None],
) -> list[Measurement]:
    """One file with each cache, against the reference with an F16 cache if there is one.

    Raises:
        EvaluateError: the two cannot be compared, or their results are not finite.
        ModelLoadError: llama.cpp refuses one of them.
        Interrupted: Ctrl-C.
    """
    header = read_gguf_header(candidate.path)
    label: tuple[tuple[str, Label], ...] = (("type", candidate.name),)
    found = [
        Measurement("bits_per_weight", "bits", header.bits_per_weight, label),
        Measurement("file_bytes", "bytes", header.file_bytes, label),
    ]
    for kv, schedule in schedules.items():
        progress = steps(f"{candidate.name}, KV {kv}")
        if len(schedule.stages) > 1:
            result = _staged(candidate.path, reference, kv, tokens, settings, progress)
        else:
            result = _measure_unstaged(
                candidate.path, reference, schedule, tokens, settings, progress
            )
        found += _figures(result, (*label, ("kv", kv)))
    return found


def _figures(
    result: Perplexity | Divergence, labels: tuple[tuple[str, Label], ...]
) -> list[Measurement]:
    mine = result if isinstance(result, Perplexity) else result.candidate
    more: tuple[tuple[str, Label], ...] = (
        ("tokens", len(mine.log_probs)), ("standard_error", mine.standard_error),
    )  # fmt: skip
    found = [Measurement("perplexity", "", mine.value, (*labels, *more))]
    if isinstance(result, Divergence):
        change = mine.value / result.reference.value - 1
        found += [
            Measurement("perplexity_change", "of 1", change, labels),
            Measurement("kl", "nats/token", result.mean_kl, labels),
            Measurement("kl_p99", "nats/token", result.p99_kl, labels),
            Measurement("top1", "of 1", result.top1, labels),
        ]
    return found


def _measure_unstaged(
    path: Path,
    reference: Path | None,
    schedule: KvSchedule,
    tokens: Sequence[int],
    settings: QualitySettings,
    progress: Progress | None,
) -> Perplexity | Divergence:
    stage = schedule.stages[0]
    with ExitStack() as stack:
        # rows of q4_0 as our kernels write them, where they compute the whole graph
        own = "q4_0" in (stage.type_k, stage.type_v)
        model = stack.enter_context(_model(path, own=own))
        subject = Subject(model, stage.type_k, stage.type_v)
        if reference is None:
            return evaluate_perplexity(subject, tokens, settings.cut(), progress)
        other = stack.enter_context(_model(reference))
        return compare_models(Subject(other), subject, tokens, settings.cut(), progress)


def _staged(
    path: Path,
    reference: Path | None,
    kv: str,
    tokens: Sequence[int],
    settings: QualitySettings,
    progress: Progress | None,
) -> Perplexity | Divergence:
    """Token by token, so that every row is computed with the cache types of its stage."""
    cut = settings.cut(STAGED_WINDOWS)
    paths = [path] if reference is None else [reference, path]
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                LlamaEngine(
                    one, EngineSettings(settings.window, threads=settings.threads, kv=spec)
                )
            )
            for one, spec in zip(paths[::-1], (kv, "f16"), strict=False)
        ][::-1]  # fmt: skip
        with _model(path, vocab_only=True) as model:
            windows = cut_windows(model, tokens, cut)
        stack.enter_context(interruptible())
        scores = []
        for number, window in enumerate(windows, 1):
            scores.append(_window_scores(engines, window, cut.first_scored))
            if progress:
                progress(number, len(windows))
    found = np.concatenate(scores)
    if reference is None:
        return Perplexity(np.ascontiguousarray(found["reference_log_prob"]))
    return Divergence(
        Perplexity(np.ascontiguousarray(found["reference_log_prob"])),
        Perplexity(np.ascontiguousarray(found["candidate_log_prob"])),
        np.ascontiguousarray(found["kl"]),
        found["reference_top"] == found["candidate_top"],
    )


def _window_scores(
    engines: Sequence[LlamaEngine], window: NDArray[np.int32], first: int
) -> NDArray[np.void]:
    tokens = [int(token) for token in window]
    rows = []
    for engine in engines:
        engine.trim(0)
        # one token at first: a long prompt would be computed in the first stage's types
        engine.feed(tokens[:1])
        logits = []
        for i, token in enumerate(tokens[1:]):
            if i >= first:
                logits.append(engine.logits().copy())
            engine.step(token)
        rows.append(np.stack(logits))
    targets = window[first + 1 :]
    n_threads = engines[0].info.n_threads
    scores: NDArray[np.void] = score_rows(rows, targets, n_threads)
    return scores
