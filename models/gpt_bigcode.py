"""GPT-BigCode (StarCoder, SantaCoder, tiny_starcoder) on llama.cpp's ``starcoder`` graph."""

from __future__ import annotations

import math
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
from .scaling import with_scaled_rows
from .transforms import AsStored, Transform, UnfuseQKV


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``GPTBigCodeForCausalLM``; ``multi_query`` shares one key head between all."""
    read = ConfigReader(config)
    n_embd = read.count("n_embd", "hidden_size")
    n_layer = read.count("n_layer", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("n_head", "num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("n_inner", default=4 * n_embd)
    n_ctx = read.count("n_positions", "max_position_embeddings", default=1024)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    if read.flag("add_cross_attention", default=False):
        raise ConfigError(
            "config.json: add_cross_attention is true; llama.cpp's graph has it false"
        )
    shares = read.flag("multi_query", default=True)
    n_head_kv = 1 if shares else n_head
    # the graph divides every product of q and k by sqrt(head_dim)
    factor = 1.0 if read.flag("scale_attn_weights", default=True) else math.sqrt(head_dim)
    tied = read.flag("tie_word_embeddings", default=True)
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head, n_head_kv)
    n_qkv = n_embd + 2 * n_head_kv * head_dim
    unfuse: Transform = AsStored() if shares else UnfuseQKV(n_head, head_dim)
    return Network(
        architecture="GPTBigCodeForCausalLM",
        graph="starcoder",
        metadata=sizes.metadata(read.epsilon("layer_norm_epsilon")),
        rules=(
            *_outer_rules(n_embd, n_vocab, n_ctx, tied=tied),
            *(
                rule
                for i in range(n_layer)
                for rule in _layer_rules(i, n_embd, n_ff, n_qkv, unfuse, factor)
            ),
        ),
        prefixes=("transformer.", ""),
        ignored=(
            *((r"lm_head\.weight",) if tied else ()), r"h\.\d+\.attn\.(bias|masked_bias)",
        ),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_ctx,
        n_head_kv=n_head_kv,
        erf_gelu=read.erf_gelu("activation_function", default="gelu_pytorch_tanh"),
    )  # fmt: skip


def _outer_rules(n_embd: int, n_vocab: int, n_ctx: int, *, tied: bool) -> tuple[TensorRule, ...]:
    return (
        tensor("token_embd.weight", Role.TOKEN_EMBEDDING, Part("wte.weight", (n_vocab, n_embd))),
        tensor(
            "position_embd.weight", Role.POSITION_EMBEDDING, Part("wpe.weight", (n_ctx, n_embd))
        ),
        *affine("output_norm", "ln_f", (n_embd,), Role.NORM),
        *own_head(n_vocab, n_embd, tied=tied),
    )


def _layer_rules(
    layer: int, n_embd: int, n_ff: int, n_qkv: int, unfuse: Transform, q_factor: float
) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"h.{layer}"
    pair = partial(affine, layer=layer)
    qkv = pair(
        f"{here}.attn_qkv", f"{there}.attn.c_attn", (n_qkv, n_embd), Role.ATTN_QKV,
        transform=unfuse,
    )  # fmt: skip
    return (
        *pair(f"{here}.attn_norm", f"{there}.ln_1", (n_embd,), Role.NORM),
        *(with_scaled_rows(rule, q_factor, n_embd) for rule in qkv),
        *pair(
            f"{here}.attn_output", f"{there}.attn.c_proj", (n_embd, n_embd), Role.ATTN_OUTPUT
        ),
        *pair(f"{here}.ffn_norm", f"{there}.ln_2", (n_embd,), Role.NORM),
        *pair(f"{here}.ffn_up", f"{there}.mlp.c_fc", (n_ff, n_embd), Role.FFN_UP),
        *pair(f"{here}.ffn_down", f"{there}.mlp.c_proj", (n_embd, n_ff), Role.FFN_DOWN),
    )  # fmt: skip
