"""XGLM (xglm-564M to 7.5B) on llama.cpp's ``gpt2`` graph.

Its positions are sinusoids, which become the graph's table; its embedding is multiplied by the root
of its width, so the head, which is not, is written beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .made import Sinusoids
from .network import (
    MOST_HEADS,
    MOST_LAYERS,
    ConfigReader,
    Network,
    NetworkSizes,
    Part,
    Role,
    TensorRule,
    affine,
    head_dim_of,
    tensor,
)
from .scaling import with_scaled_rows

# the position of the first token
_OFFSET = 2


def describe(config: Mapping[str, Any]) -> Network:
    """Describe an ``XGLMForCausalLM``."""
    read = ConfigReader(config)
    n_embd = read.count("d_model", "hidden_size")
    n_layer = read.count("num_layers", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("attention_heads", "num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("ffn_dim", default=4 * n_embd)
    n_ctx = read.count("max_position_embeddings", default=2048)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    factor = n_embd**0.5 if read.flag("scale_embedding", default=True) else 1.0
    tied = read.flag("tie_word_embeddings", default=True)
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head)
    return Network(
        architecture="XGLMForCausalLM",
        graph="gpt2",
        # XGLM's class has no setting for it
        metadata=sizes.metadata(1e-5),
        rules=(
            *_outer_rules(n_embd, n_vocab, n_ctx, factor, tied=tied),
            *(r for i in range(n_layer) for r in _layer_rules(i, n_embd, n_ff)),
        ),
        prefixes=("model.", ""),
        ignored=(
            *((r"lm_head\.weight",) if tied else ()), r"embed_positions\.weights",
        ),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_ctx,
        erf_gelu=read.erf_gelu("activation_function", default="gelu"),
    )  # fmt: skip


def _outer_rules(
    n_embd: int, n_vocab: int, n_ctx: int, factor: float, *, tied: bool
) -> tuple[TensorRule, ...]:
    embedding = Part("embed_tokens.weight", (n_vocab, n_embd))
    head = embedding if tied else Part("lm_head.weight", (n_vocab, n_embd))
    tokens = tensor("token_embd.weight", Role.TOKEN_EMBEDDING, embedding)
    return (
        with_scaled_rows(tokens, factor),
        TensorRule(
            "position_embd.weight", Role.POSITION_EMBEDDING, (n_ctx, n_embd), (),
            made=Sinusoids(_OFFSET),
        ),
        *affine("output_norm", "layer_norm", (n_embd,), Role.NORM),
        tensor("output.weight", Role.HEAD, head),
    )  # fmt: skip


def _layer_rules(layer: int, n_embd: int, n_ff: int) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"layers.{layer}"
    pair = partial(affine, layer=layer)
    square = (n_embd, n_embd)
    names = [f"{there}.self_attn.{name}_proj" for name in "qkv"]
    return (
        *pair(f"{here}.attn_norm", f"{there}.self_attn_layer_norm", (n_embd,), Role.NORM),
        tensor(
            f"{here}.attn_qkv.weight", Role.ATTN_QKV,
            *(Part(f"{name}.weight", square) for name in names), layer=layer,
        ),
        tensor(
            f"{here}.attn_qkv.bias", Role.BIAS,
            *(Part(f"{name}.bias", (n_embd,)) for name in names), layer=layer,
        ),
        *pair(f"{here}.attn_output", f"{there}.self_attn.out_proj", square, Role.ATTN_OUTPUT),
        *pair(f"{here}.ffn_norm", f"{there}.final_layer_norm", (n_embd,), Role.NORM),
        *pair(f"{here}.ffn_up", f"{there}.fc1", (n_ff, n_embd), Role.FFN_UP),
        *pair(f"{here}.ffn_down", f"{there}.fc2", (n_embd, n_ff), Role.FFN_DOWN),
    )  # fmt: skip
