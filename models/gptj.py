"""GPT-J (gpt-j-6B, GPT-JT, GPT4All-J, Pygmalion-6b, ...) on llama.cpp's ``phi2`` graph.

llama.cpp has no GPT-J graph. ``phi2`` computes the same function: one norm feeds attention and
feed-forward in parallel, GELU in its tanh form, partial rotary embedding, a head with a bias. Only
the rotary rows need a different order, see :class:`~.transforms.PairsToHalves`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .network import (
    MOST_HEADS,
    MOST_LAYERS,
    ConfigError,
    ConfigReader,
    MetadataValue,
    Network,
    NetworkSizes,
    Part,
    Role,
    TensorRule,
    affine,
    head_dim_of,
    tensor,
)
from .transforms import PairsToHalves


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``GPTJForCausalLM``. A ``rotary_dim`` of null rotates the whole head."""
    read = ConfigReader(config)
    n_embd = read.count("n_embd", "hidden_size")
    n_layer = read.count("n_layer", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("n_head", "num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("n_inner", default=4 * n_embd)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    n_rot = read.count("rotary_dim", default=head_dim)
    if n_rot % 2 or n_rot > head_dim:
        raise ConfigError(
            f"config.json: rotary_dim is {n_rot}; expected an even number up to the head's "
            f"{head_dim}"
        )
    tied = read.flag("tie_word_embeddings", default=False)
    n_ctx = read.count("n_positions", "max_position_embeddings", default=2048)
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head)
    metadata: dict[str, MetadataValue] = {
        **sizes.metadata(read.epsilon("layer_norm_epsilon")),
        "rope.dimension_count": n_rot,
        "rope.freq_base": 10000.0,
    }
    order = PairsToHalves(n_head, head_dim, n_rot)
    return Network(
        architecture="GPTJForCausalLM",
        graph="phi2",
        metadata=metadata,
        rules=(
            *_outer_rules(n_embd, n_vocab, tied=tied),
            *(r for i in range(n_layer) for r in _layer_rules(i, n_embd, n_ff, order)),
        ),
        prefixes=("transformer.", ""),
        ignored=(
            *((r"lm_head\.weight",) if tied else ()),
            r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",
            r"embed_positions",
        ),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_rot=n_rot,
        n_ctx=n_ctx,
        erf_gelu=read.erf_gelu("activation_function", default="gelu_new"),
    )


def _outer_rules(n_embd: int, n_vocab: int, *, tied: bool) -> tuple[TensorRule, ...]:
    embedding = Part("wte.weight", (n_vocab, n_embd))
    # the graph has no tied head: a tied checkpoint's embedding is written a second time
    head = embedding if tied else Part("lm_head.weight", (n_vocab, n_embd))
    return (
        tensor("token_embd.weight", Role.TOKEN_EMBEDDING, embedding),
        *affine("output_norm", "ln_f", (n_embd,), Role.NORM),
        tensor("output.weight", Role.HEAD, head),
        tensor("output.bias", Role.BIAS, Part("lm_head.bias", (n_vocab,))),
    )


def _layer_rules(
    layer: int, n_embd: int, n_ff: int, order: PairsToHalves
) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"h.{layer}"
    pair = partial(affine, layer=layer)
    square = (n_embd, n_embd)
    return (
        *pair(f"{here}.attn_norm", f"{there}.ln_1", (n_embd,), Role.NORM),
        tensor(
            f"{here}.attn_qkv.weight",
            Role.ATTN_QKV,
            Part(f"{there}.attn.q_proj.weight", square, order),
            Part(f"{there}.attn.k_proj.weight", square, order),
            Part(f"{there}.attn.v_proj.weight", square),
            layer=layer,
        ),
        *pair(
            f"{here}.attn_output", f"{there}.attn.out_proj", square, Role.ATTN_OUTPUT, bias=False
        ),
        *pair(f"{here}.ffn_up", f"{there}.mlp.fc_in", (n_ff, n_embd), Role.FFN_UP),
        *pair(f"{here}.ffn_down", f"{there}.mlp.fc_out", (n_embd, n_ff), Role.FFN_DOWN),
    )
