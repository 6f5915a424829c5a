"""The collector against numpy: where a layer's input is known, and the head's from its logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comparison import has_windows
from helpers import PARALLEL, REFERENCES, Converter, read_tensors
from numpy.typing import NDArray

from infer_os.native.activations import ActivationCollector, ActivationSums
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import EvaluateError
from infer_os.native.gguf_file import read_gguf_header, tensor_array
from infer_os.native.model import LlamaModel

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 300, 40)]
TIED = next(path for path in REFERENCES if path.name == "gpt2")
NARROW = next(path for path in REFERENCES if path.name == "gpt2-untied")

Sums = dict[str, ActivationSums]


def collect(
    path: Path, *batches: list[int], outputs: int | None = None
) -> tuple[Sums, NDArray[np.float32]]:
    """Decode batches one after the other in one sequence; the sums and the last one's logits."""
    params = ContextParams(n_ctx=128, n_threads=1, n_outputs_max=64)
    with (
        LlamaModel(path, native=has_windows(path)) as model,
        ActivationCollector() as collector,
        Context(model, params, collector) as context,
    ):
        position = 0
        for batch in batches:
            n_outputs = len(batch) if outputs is None else outputs
            context.decode(batch, position, outputs=n_outputs)
            position += len(batch)
        return collector.results(), context.logits_rows(n_outputs).copy()


def plain_logits(path: Path, tokens: list[int]) -> NDArray[np.float32]:
    params = ContextParams(n_ctx=128, n_threads=1, n_outputs_max=64)
    with LlamaModel(path) as model, Context(model, params) as context:
        context.decode(tokens, 0, outputs=len(tokens))
        return context.logits_rows(len(tokens)).copy()


def normalized(
    x: NDArray[np.float64], weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> NDArray[np.float64]:
    x = x - x.mean(-1, keepdims=True)
    result: NDArray[np.float64] = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight + bias
    return result


def test_the_first_layer_equals_numpy(converted: Converter) -> None:
    sums, _ = collect(converted(kind="f32"), TOKENS)
    tensors = {k: v.astype(np.float64) for k, v in read_tensors(PARALLEL).items()}
    embedded = tensors["gpt_neox.embed_in.weight"][TOKENS]  # (n_tokens, n_embd)
    layer = "gpt_neox.layers.0"
    # with a parallel residual, both norms see the embedding itself
    for target, norm in (
        ("attn_qkv", "input_layernorm"),
        ("ffn_up", "post_attention_layernorm"),
    ):
        entered = normalized(
            embedded, tensors[f"{layer}.{norm}.weight"], tensors[f"{layer}.{norm}.bias"]
        )
        found = sums[f"blk.0.{target}.weight"]
        assert found.n_rows == len(TOKENS)
        np.testing.assert_allclose(found.sum_squares, (entered**2).sum(0), rtol=1e-5)
        np.testing.assert_allclose(found.mean_squares, (entered**2).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("folder", "head"), [(PARALLEL, "output.weight"), (TIED, "token_embd.weight")]
)
def test_the_head_equals_what_its_logits_say(folder: Path, head: str, converted: Converter) -> None:
    path = converted(folder, "f32")
    sums, logits = collect(path, TOKENS)
    header = read_gguf_header(path)
    weight = next(tensor_array(header, t) for t in header.tensors if t.name == head)
    # the weights have far more rows than columns: the logits determine what entered
    entered = np.linalg.lstsq(weight.astype(np.float64), logits.T.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(sums[head].sum_squares, (entered**2).sum(1), rtol=1e-4)
    assert sums[head].n_rows == len(TOKENS)
    # looking up embeddings is no matrix product, and a tied file has no second head
    assert ("token_embd.weight" in sums) == (head == "token_embd.weight")
    assert ("output.weight" in sums) == (head == "output.weight")


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda path: path.name)
def test_every_matrix_of_every_network_is_seen(folder: Path, converted: Converter) -> None:
    path = converted(folder)
    sums, _ = collect(path, TOKENS)
    header = read_gguf_header(path)
    widths = {t.name: t.shape[0] for t in header.tensors if len(t.shape) == 2}
    looked_up = {"position_embd.weight"}
    looked_up |= {"token_embd.weight"} if "output.weight" in widths else set()
    assert sums.keys() == widths.keys() - looked_up
    for name, found in sums.items():
        assert found.n_rows == len(TOKENS), name
        assert found.sum_squares.shape == (widths[name],)


def test_batches_add_up(converted: Converter) -> None:
    path = converted(kind="f32")
    whole, logits = collect(path, TOKENS)
    parts, last = collect(path, TOKENS[:7], TOKENS[7:8], TOKENS[8:])
    np.testing.assert_allclose(last, logits[8:], atol=2e-3)
    assert whole.keys() == parts.keys()
    for name, found in whole.items():
        assert parts[name].n_rows == found.n_rows == len(TOKENS)
        np.testing.assert_allclose(parts[name].sum_squares, found.sum_squares, rtol=1e-2)


def test_the_last_block_sees_only_the_tokens_that_get_logits(converted: Converter) -> None:
    sums, _ = collect(converted(), TOKENS, outputs=3)
    assert sums["output.weight"].n_rows == 3
    assert sums["blk.1.ffn_up.weight"].n_rows == 3
    assert sums["blk.1.attn_qkv.weight"].n_rows == len(TOKENS)


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_watching_changes_no_logits(kind: str, converted: Converter) -> None:
    path = converted(kind=kind)
    expected = plain_logits(path, TOKENS)
    _, watched = collect(path, TOKENS)
    assert np.array_equal(watched, expected)
    assert np.array_equal(plain_logits(path, TOKENS), expected)


def test_one_collector_serves_models_one_after_the_other(converted: Converter) -> None:
    one, two = converted(PARALLEL, "f32"), converted(PARALLEL, "f16")
    params = ContextParams(n_ctx=128, n_threads=1, n_outputs_max=64)
    with ActivationCollector() as collector:
        for path in (one, two):
            with LlamaModel(path) as model, Context(model, params, collector) as context:
                context.decode(TOKENS, 0, outputs=len(TOKENS))
        both = collector.results()
    first, _ = collect(one, TOKENS)
    second, _ = collect(two, TOKENS)
    for name, found in both.items():
        expected = first[name].sum_squares + second[name].sum_squares
        np.testing.assert_allclose(found.sum_squares, expected, rtol=1e-12)
        assert found.n_rows == 2 * len(TOKENS)


def test_a_model_of_another_width_is_refused(converted: Converter) -> None:
    params = ContextParams(n_ctx=128, n_threads=1, n_outputs_max=64)
    with ActivationCollector() as collector:
        for folder in (PARALLEL, NARROW):
            with (
                LlamaModel(converted(folder)) as model,
                Context(model, params, collector) as context,
            ):
                context.decode(TOKENS, 0, outputs=len(TOKENS))
        with pytest.raises(
            EvaluateError, match=r"blk\.0\.\w+\.weight: the width of its input changed"
        ):
            collector.results()


def test_results_are_copies(converted: Converter) -> None:
    params = ContextParams(n_ctx=128, n_threads=1, n_outputs_max=64)
    with (
        LlamaModel(converted()) as model,
        ActivationCollector() as collector,
        Context(model, params, collector) as context,
    ):
        assert collector.results() == {}
        context.decode(TOKENS, 0)
        before = collector.results()["blk.0.attn_qkv.weight"].sum_squares
        kept = before.copy()
        context.decode(TOKENS, len(TOKENS))
        after = collector.results()["blk.0.attn_qkv.weight"].sum_squares
    assert np.array_equal(before, kept)
    assert (after > before).all()


def test_activations_that_are_no_numbers_are_named(converted: Converter, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(converted(kind="f32").read_bytes())
    header = read_gguf_header(path)
    bias = next(t for t in header.tensors if t.name == "blk.1.ffn_norm.bias")
    with path.open("r+b") as file:
        file.seek(header.data_offset + bias.offset)
        file.write(np.array([np.nan], "<f4").tobytes())
    with pytest.raises(EvaluateError, match=r"blk\.1\.ffn_up\.weight: an activation is NaN"):
        collect(path, TOKENS)


def test_a_closed_collector_says_so() -> None:
    collector = ActivationCollector()
    collector.close()
    collector.close()
    with pytest.raises(EvaluateError, match="closed"):
        collector.results()
