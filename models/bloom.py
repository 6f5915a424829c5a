"""BLOOM (bloom-560m to bloom, BLOOMZ) on llama.cpp's ``bloom`` graph."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .network import (
    MOST_HEADS,
    MOST_LAYERS,
    ConfigError,
    ConfigReader,
    Network,
    NetworkSizes,
    Part,
    Role,
    TensorRule,
    affine,
    head_dim_of,
    own_head,
    tensor,
)
from .transforms import UnfuseQKV

# ALiBi has no trained limit; this is what the published models were trained with
_TRAINED_CONTEXT = 2048


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``BloomForCausalLM`` or a bare ``BloomModel``."""
    read = ConfigReader(config)
    n_embd = read.count("hidden_size", "n_embed")
    n_layer = read.count("n_layer", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("n_head", "num_attention_heads", most=MOST_HEADS)
    n_vocab = read.count("vocab_size")
    n_ff = 4 * n_embd
    head_dim = head_dim_of(n_embd, n_head)
    if read.flag("apply_residual_connection_post_layernorm", default=False):
        raise ConfigError(
            "config.json: apply_residual_connection_post_layernorm is true; "
            "llama.cpp's graph has the residual before the norm"
        )
    tied = read.flag("tie_word_embeddings", default=True)
    n_ctx = read.count("seq_length", default=_TRAINED_CONTEXT)
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head)
    metadata = sizes.metadata(read.epsilon("layer_norm_epsilon"))
    unfuse = UnfuseQKV(n_head, head_dim)
    return Network(
        architecture="BloomForCausalLM",
        graph="bloom",
        metadata=metadata,
        rules=(
            *_outer_rules(n_embd, n_vocab, tied=tied),
            *(r for i in range(n_layer) for r in _layer_rules(i, n_embd, n_ff, unfuse)),
        ),
        prefixes=("transformer.", ""),
        ignored=(r"lm_head\.weight",) if tied else (),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_ctx,
    )


def _outer_rules(n_embd: int, n_vocab: int, *, tied: bool) -> tuple[TensorRule, ...]:
    return (
        tensor(
            "token_embd.weight", Role.TOKEN_EMBEDDING,
            Part("word_embeddings.weight", (n_vocab, n_embd)),
        ),
        *affine("token_embd_norm", "word_embeddings_layernorm", (n_embd,), Role.NORM),
        *affine("output_norm", "ln_f", (n_embd,), Role.NORM),
        *own_head(n_vocab, n_embd, tied=tied),
    )  # fmt: skip


def _layer_rules(layer: int, n_embd: int, n_ff: int, unfuse: UnfuseQKV) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"h.{layer}"
    pair = partial(affine, layer=layer)
    return (
        *pair(f"{here}.attn_norm", f"{there}.input_layernorm", (n_embd,), Role.NORM),
        *pair(
            f"{here}.attn_qkv", f"{there}.self_attention.query_key_value", (3 * n_embd, n_embd),
            Role.ATTN_QKV, transform=unfuse,
        ),
        *pair(
            f"{here}.attn_output", f"{there}.self_attention.dense", (n_embd, n_embd),
            Role.ATTN_OUTPUT,
        ),
        *pair(f"{here}.ffn_norm", f"{there}.post_attention_layernorm", (n_embd,), Role.NORM),
        *pair(f"{here}.ffn_up", f"{there}.mlp.dense_h_to_4h", (n_ff, n_embd), Role.FFN_UP),
        *pair(f"{here}.ffn_down", f"{there}.mlp.dense_4h_to_h", (n_embd, n_ff), Role.FFN_DOWN),
    )  # fmt: skip
