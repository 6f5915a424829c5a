"""Perplexity and divergence against numpy on all logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comparison import all_logits, compare_logits, log_softmax
from helpers import PARALLEL, SEQUENTIAL, Converter
from numpy.typing import NDArray

from infer_os.native import scoring
from infer_os.native.errors import DecodeError, EvaluateError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import (
    Divergence,
    Subject,
    WindowSettings,
    compare_models,
    cut_windows,
    evaluate_perplexity,
    score_rows,
)

TOKENS = [int(token) for token in np.random.default_rng(9).integers(0, 300, 150)]
WINDOWS = [TOKENS[:64], TOKENS[64:128]]
SETTINGS = WindowSettings(n_threads=1, n_ctx=64, skip=0)


def random_logits(n_rows: int, n_vocab: int, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((n_rows, n_vocab)) * 4).astype(np.float32)


@pytest.fixture(scope="module")
def model(converted: Converter) -> Iterator[LlamaModel]:
    with LlamaModel(converted(kind="f32")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def coarse(converted: Converter) -> Iterator[LlamaModel]:
    with LlamaModel(converted(kind="q4_0")) as loaded:
        yield loaded


# ---- rows of logits


def test_rows_equal_numpy() -> None:
    p, q = random_logits(7, 500), random_logits(7, 500, seed=1)
    q[0] = p[0]
    targets = np.arange(7, dtype=np.int32) * 60
    scores = score_rows([p, q], targets, 2)
    log_p, log_q = log_softmax(p), log_softmax(q)
    rows = np.arange(7)
    np.testing.assert_allclose(scores["reference_log_prob"], log_p[rows, targets], rtol=1e-12)
    np.testing.assert_allclose(scores["candidate_log_prob"], log_q[rows, targets], rtol=1e-12)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    np.testing.assert_allclose(scores["kl"], kl, rtol=1e-10, atol=1e-13)
    assert scores["kl"][0] == pytest.approx(0, abs=1e-14)
    assert np.array_equal(scores["reference_top"], p.argmax(1))
    assert np.array_equal(scores["candidate_top"], q.argmax(1))


def test_a_tiny_divergence_is_told_from_none() -> None:
    p = random_logits(4, 5000)
    q = (p + np.random.default_rng(2).standard_normal(p.shape) * 1e-4).astype(np.float32)
    wide_p, wide_q = p.astype(np.longdouble), q.astype(np.longdouble)
    log_p = wide_p - np.log(np.exp(wide_p).sum(1, keepdims=True))
    log_q = wide_q - np.log(np.exp(wide_q).sum(1, keepdims=True))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    scores = score_rows([p, q], np.zeros(4, np.int32), 1)
    assert (kl < 1e-8).all()
    np.testing.assert_allclose(scores["kl"], kl.astype(np.float64), rtol=1e-5)


def test_extreme_logits() -> None:
    p = np.array([[1e4, -1e4, 0], [-np.inf, 1, 1], [1, 1, 1]], np.float32)
    q = np.array([[1e4, 1e4, 0], [5, 1, 1], [-np.inf, 1, 1]], np.float32)
    scores = score_rows([p, q], np.array([0, 1, 1], np.int32), 1)
    assert scores["reference_log_prob"] == pytest.approx([0, -np.log(2), -np.log(3)])
    assert scores["kl"][0] == pytest.approx(np.log(2))
    assert scores["kl"][1] == pytest.approx(np.log(np.exp(4) + 2) - np.log(2))
    assert scores["kl"][2] == np.inf


def test_several_targets_of_a_row_and_none_of_another() -> None:
    p = random_logits(5, 300)
    rows = np.array([3, 0, 3, 1, 3], np.int32)
    targets = np.array([7, 299, 0, 5, int(p[3].argmax())], np.int32)
    scores = score_rows([p], targets, 2, rows)
    np.testing.assert_allclose(
        scores["reference_log_prob"], log_softmax(p)[rows, targets], rtol=1e-12
    )
    assert np.array_equal(scores["reference_top"], p.argmax(1)[rows])
    assert score_rows([p], np.zeros(0, np.int32), 2, np.zeros(0, np.int32)).size == 0


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_there_is_not(row: int) -> None:
    with pytest.raises(EvaluateError, match="a row outside the logits"):
        score_rows([random_logits(5, 9)], np.zeros(1, np.int32), 1, np.array([row], np.int32))
    with pytest.raises(EvaluateError, match="1 tokens for 2 numbers of rows"):
        score_rows([random_logits(5, 9)], np.zeros(1, np.int32), 1, np.zeros(2, np.int32))


def test_every_number_of_threads_gives_the_same_scores() -> None:
    p, q = random_logits(23, 300), random_logits(23, 300, seed=1)
    targets = np.arange(23, dtype=np.int32)
    first = score_rows([p, q], targets, 1)
    for n_threads in (0, 2, 5, 40):
        assert np.array_equal(score_rows([p, q], targets, n_threads), first)


def test_without_a_candidate_its_fields_are_zero() -> None:
    p = random_logits(3, 50)
    alone = score_rows([p], np.zeros(3, np.int32), 1)
    pair = score_rows([p, p], np.zeros(3, np.int32), 1)
    assert np.array_equal(alone["reference_log_prob"], pair["reference_log_prob"])
    assert not alone["kl"].any()
    assert not alone["candidate_log_prob"].any()


def test_rows_that_do_not_go_together_are_refused() -> None:
    p = random_logits(3, 50)
    with pytest.raises(EvaluateError, match="cannot compare logits"):
        score_rows([p, p[:, :49]], np.zeros(3, np.int32), 1)
    with pytest.raises(EvaluateError, match="2 tokens for 3 rows"):
        score_rows([p], np.zeros(2, np.int32), 1)
    for token in (-1, 50):
        with pytest.raises(EvaluateError, match="outside the vocabulary"):
            score_rows([p], np.array([0, token, 0], np.int32), 1)


# ---- models


def test_perplexity_equals_numpy(model: LlamaModel) -> None:
    found = evaluate_perplexity(Subject(model), TOKENS, SETTINGS)
    expected = np.concatenate(
        [
            log_softmax(all_logits(model.path, window))[np.arange(63), window[1:]]
            for window in WINDOWS
        ]
    )
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    assert found.value == pytest.approx(np.exp(-expected.mean()), rel=1e-5)
    assert found.standard_error == pytest.approx(
        found.value * expected.std(ddof=1) / np.sqrt(126), rel=1e-4
    )


def expected_divergence(
    model: LlamaModel, coarse: LlamaModel, first: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """KL and equal argmax of every scored position, from all logits at once."""
    kls: list[NDArray[np.float64]] = []
    tops: list[NDArray[np.bool_]] = []
    for window in WINDOWS:
        p, q = all_logits(model.path, window)[first:63], all_logits(coarse.path, window)[first:63]
        log_p, log_q = log_softmax(p), log_softmax(q)
        kls.append((np.exp(log_p) * (log_p - log_q)).sum(1))
        tops.append(p.argmax(1) == q.argmax(1))
        assert compare_logits(p, q).kl == pytest.approx(kls[-1].mean())
    return np.concatenate(kls), np.concatenate(tops)


@pytest.mark.parametrize("skip", [None, 0, 40])
def test_divergence_equals_numpy(model: LlamaModel, coarse: LlamaModel, skip: int | None) -> None:
    settings = WindowSettings(n_threads=1, n_ctx=64, skip=skip)
    found = compare_models(Subject(model), Subject(coarse), TOKENS, settings)
    kl, same_top = expected_divergence(model, coarse, 32 if skip is None else skip)
    assert found.n_tokens == len(kl)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-3, atol=1e-7)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert found.p99_kl == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert np.array_equal(found.same_top, same_top)
    assert found.top1 == same_top.mean() < 1
    alone = evaluate_perplexity(Subject(coarse), TOKENS, settings)
    np.testing.assert_allclose(found.candidate.log_probs, alone.log_probs, atol=1e-5)
    assert found.reference.value != found.candidate.value


@pytest.mark.parametrize("skip", [0, 40])
def test_small_batches_give_the_same_figures(
    model: LlamaModel, coarse: LlamaModel, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WindowSettings(n_threads=1, n_ctx=64, skip=skip)

    def run() -> Divergence:
        return compare_models(Subject(model), Subject(coarse), TOKENS, settings)

    whole = run()
    # as a vocabulary of 250 k would have it: 32 rows of logits at most
    monkeypatch.setattr(scoring, "_LOGIT_BYTES", 0)
    parts = run()
    assert parts.n_tokens == whole.n_tokens
    # quantized activations round differently in batches of another size
    np.testing.assert_allclose(parts.kl, whole.kl, rtol=0.2, atol=1e-2)
    np.testing.assert_allclose(parts.reference.log_probs, whole.reference.log_probs, atol=2e-2)


def test_a_batch_of_logits_is_bounded(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WindowSettings(n_threads=1, n_ctx=128)
    for limit, expected in ((1 << 30, 128), (300 * 4 * 70, 64), (0, 32)):
        monkeypatch.setattr(scoring, "_LOGIT_BYTES", limit)
        with scoring.evaluation_context(Subject(model), settings) as context:
            assert (context.n_batch, context.params.n_outputs_max) == (expected, expected)


def test_a_model_does_not_diverge_from_itself(model: LlamaModel) -> None:
    found = compare_models(Subject(model), Subject(model), TOKENS, SETTINGS)
    assert found.kl.max() < 1e-13
    assert found.top1 == 1.0
    assert np.array_equal(found.reference.log_probs, found.candidate.log_probs)


def test_caches_can_be_compared(model: LlamaModel) -> None:
    found = compare_models(
        Subject(model), Subject(model, type_k="q4_0", type_v="q4_0"), TOKENS, SETTINGS
    )
    finer = compare_models(
        Subject(model), Subject(model, type_k="q8_0", type_v="q8_0"), TOKENS, SETTINGS
    )
    assert found.mean_kl > 4 * finer.mean_kl > 0


def test_progress_counts_windows(model: LlamaModel) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_perplexity(Subject(model), TOKENS, SETTINGS, lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]


def test_windows(model: LlamaModel) -> None:
    windows = cut_windows(model, TOKENS, SETTINGS)
    assert windows.tolist() == WINDOWS
    one = WindowSettings(n_threads=1, n_ctx=64, max_windows=1)
    assert cut_windows(model, np.array(TOKENS), one).tolist() == WINDOWS[:1]


def test_a_model_that_wants_a_first_token_gets_it_in_every_window(
    converted: Converter, tmp_path: Path
) -> None:
    data = converted(kind="f32").read_bytes()
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    assert data.count(key + b"\0") == 1
    path = tmp_path / "bos.gguf"
    path.write_bytes(data.replace(key + b"\0", key + b"\1"))
    tokens = [token or 1 for token in TOKENS]
    with LlamaModel(path) as loaded:
        windows = cut_windows(loaded, tokens, SETTINGS)
        assert windows[:, 0].tolist() == [loaded.vocab.bos] * 2 == [0, 0]
    assert windows[:, 1:].tolist() == [tokens[1:64], tokens[65:128]]


def test_too_few_tokens_are_refused(model: LlamaModel) -> None:
    with pytest.raises(EvaluateError, match="too short: 63 tokens do not fill a window of 64"):
        evaluate_perplexity(Subject(model), TOKENS[:63], SETTINGS)
    with pytest.raises(EvaluateError, match="too short: 0 tokens"):
        evaluate_perplexity(Subject(model), [], SETTINGS)


def test_windows_beyond_the_models_context_are_refused(model: LlamaModel) -> None:
    with pytest.raises(EvaluateError, match=r"windows of 129 tokens; f32.gguf was trained on 128"):
        evaluate_perplexity(Subject(model), TOKENS, WindowSettings(n_threads=1, n_ctx=129))


@pytest.mark.parametrize("token", [-1, 300])
def test_a_token_outside_the_vocabulary_is_refused(model: LlamaModel, token: int) -> None:
    with pytest.raises(EvaluateError, match="not in the vocabulary of 300 tokens"):
        evaluate_perplexity(Subject(model), [*TOKENS[:70], token, *TOKENS[71:]], SETTINGS)


def test_other_vocabularies_are_refused(model: LlamaModel, converted: Converter) -> None:
    with (
        LlamaModel(converted(SEQUENTIAL)) as other,
        pytest.raises(EvaluateError, match=r"320 tokens .* has 300"),
    ):
        compare_models(Subject(model), Subject(other), TOKENS, SETTINGS)


def test_a_model_that_computes_no_numbers_is_refused(converted: Converter, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(converted(PARALLEL, "f32").read_bytes())
    header = read_gguf_header(path)
    bias = next(t for t in header.tensors if t.name == "output_norm.bias")
    with path.open("r+b") as file:
        file.seek(header.data_offset + bias.offset)
        file.write(np.array([np.nan], "<f4").tobytes())
    with (
        LlamaModel(path) as damaged,
        pytest.raises(EvaluateError, match=r"damaged.gguf: .* not numbers"),
    ):
        evaluate_perplexity(Subject(damaged), TOKENS, SETTINGS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": 1}, "windows of 1 tokens"),
        ({"max_windows": 0}, "0 windows"),
        ({"n_ctx": 8, "skip": 7}, "skip 7: expected 0 to 6"),
        ({"n_ctx": 8, "skip": -1}, "skip -1"),
    ],
)
def test_settings_check_themselves(options: dict[str, int], words: str) -> None:
    with pytest.raises(EvaluateError, match=words):
        WindowSettings(n_threads=1, **options)


def test_rows_of_logits_that_were_not_computed_are_refused(model: LlamaModel) -> None:
    with scoring.evaluation_context(Subject(model), SETTINGS) as context:
        context.decode(TOKENS[:10], 0, outputs=4)
        assert context.logits_rows(4).shape == (4, 300)
        assert np.array_equal(context.logits_rows(4)[3], context.logits())
        for n in (0, 5):
            with pytest.raises(DecodeError, match="rows of logits"):
                context.logits_rows(n)
        context.decode(TOKENS[10:14], 10, outputs=4)
        with pytest.raises(DecodeError, match="no 0 rows of logits"):
            context.logits_rows(0)
