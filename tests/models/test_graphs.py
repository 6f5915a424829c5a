"""The table of graphs: complete, and the same as what the architectures write."""

from __future__ import annotations

from dataclasses import fields

import pytest

from infer_os.models.architectures import ARCHITECTURES, architecture_of, describe
from infer_os.models.catalog import CATALOG, CatalogModel
from infer_os.models.graphs import (
    GRAPHS,
    Graph,
    GraphSizes,
    GraphTensor,
    Positions,
    graph_named,
    is_parallel,
    positions_of,
)

OWN = [graph for graph in GRAPHS.values() if graph.is_own]
MODELS = {model.architecture: model for model in CATALOG}.values()


@pytest.mark.parametrize("graph", OWN, ids=lambda graph: graph.name)
def test_a_row_is_complete(graph: Graph) -> None:
    assert graph.positions is not None
    assert graph.pre_tokenizer
    assert graph.outer
    names = [tensor.name for tensor in (*graph.outer, *graph.layer)]
    assert len(set(names)) == len(names)
    assert 2 < graph.sequential_arrays <= graph.feed_forward_arrays < graph.attention_arrays


@pytest.mark.parametrize("graph", OWN, ids=lambda graph: graph.name)
def test_every_dimension_is_a_size(graph: Graph) -> None:
    sizes = GraphSizes(*(1 for _ in fields(GraphSizes)))
    for tensor in (*graph.outer, *graph.layer):
        assert all(isinstance(n, int) for n in sizes.shape(tensor))


def test_shapes_have_the_fastest_dimension_first() -> None:
    sizes = GraphSizes(n_vocab=99, n_layer=2, n_ctx=64, n_embd=12, n_ff=48, n_head=4, n_head_kv=2)
    assert sizes.shape(GraphTensor("token_embd.weight", ("n_embd", "n_vocab"))) == (12, 99)
    assert sizes.shape(GraphTensor("attn_qkv.bias", ("n_qkv",))) == (12 + 2 * 6,)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.architecture)
def test_an_architecture_writes_what_its_graph_has(model: CatalogModel) -> None:
    network = describe(model.config)
    graph = graph_named(network.graph)
    sizes = GraphSizes(
        network.vocab_rows, network.n_layer, network.n_ctx, network.n_embd,
        model.geometry.n_ff, network.n_head, network.n_head_kv or network.n_head,
    )  # fmt: skip
    wanted = {tensor.name: tensor for tensor in graph.outer}
    for layer in range(network.n_layer):
        wanted |= {f"blk.{layer}.{tensor.name}": tensor for tensor in graph.layer}
    written = {rule.target: rule.shape for rule in network.rules}
    for name, shape in written.items():
        assert sizes.shape(wanted[name])[::-1] == shape, name
    lacking = {name for name, tensor in wanted.items() if tensor.required} - written.keys()
    assert {name.rpartition(".blk")[2].split(".", 2)[-1] for name in lacking} <= (
        {"attn_qkv.bias"} if graph.split_qkv else set()
    )


def test_every_architecture_has_a_model_and_a_row() -> None:
    assert {row.name for row in ARCHITECTURES} == {model.architecture for model in MODELS}
    for model in MODELS:
        assert graph_named(describe(model.config).graph).is_own
    for row in ARCHITECTURES:
        assert architecture_of({"model_type": row.model_type}) is row
        assert architecture_of({"architectures": [row.bare]}) is row


def test_a_graph_that_nobody_looked_at_is_like_most() -> None:
    other = graph_named("llama")
    assert (other.is_own, other.positions, other.pre_tokenizer) == (False, None, "")
    assert other.flash_attention
    assert not graph_named("grok").flash_attention


@pytest.mark.parametrize(
    ("graph", "stated", "expected"),
    [
        ("phi2", None, True), ("gptneox", None, False), ("gptneox", True, True),
        ("gptneox", False, False), ("phi2", False, False), ("llama", None, False),
    ],
)  # fmt: skip
def test_what_a_file_says_goes_before_the_graph(
    graph: str, stated: bool | None, expected: bool
) -> None:
    assert is_parallel(graph, stated) is expected


def test_a_table_goes_before_slopes() -> None:
    assert positions_of("mpt", True) is Positions.LEARNED
    assert positions_of("mpt", False) is Positions.SLOPES
    assert positions_of("gptneox", False) is Positions.ROTARY
    assert positions_of("llama", True) is None


def test_positions_of_the_graphs() -> None:
    assert {graph.name: graph.positions for graph in OWN} == {
        "bloom": Positions.SLOPES, "gpt2": Positions.LEARNED, "gptneox": Positions.ROTARY,
        "phi2": Positions.ROTARY, "starcoder": Positions.LEARNED, "mpt": Positions.EITHER,
    }  # fmt: skip
