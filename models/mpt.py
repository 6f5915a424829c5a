"""MPT (mpt-7b, mpt-30b and relatives) on llama.cpp's ``mpt`` graph."""

from __future__ import annotations

from collections.abc import Mapping
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
    head_dim_of,
    own_head,
    tensor,
)
from .scaling import with_scaled_rows

# settings of attn_config that change the computation in ways that the graph does not support
_MUST_BE = (("alibi", True), ("prefix_lm", False), ("qk_ln", False))
_KINDS = ("multihead_attention", "multiquery_attention", "grouped_query_attention")
_NORMS = ("layernorm", "low_precision_layernorm")


def describe(config: Mapping[str, Any]) -> Network:
    """Describe an ``MptForCausalLM``, or an ``MPTForCausalLM`` of the models' own code."""
    read = ConfigReader(config)
    n_embd = read.count("d_model", "hidden_size")
    n_layer = read.count("n_layers", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("n_heads", "num_attention_heads", most=MOST_HEADS)
    n_ff = n_embd * read.count("expansion_ratio", default=4)
    n_ctx = read.count("max_seq_len", default=2048)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    n_head_kv = _key_heads(read, n_head)
    clip = read.number("attn_config.clip_qkv", default=0.0, low=0.0, high=1e6)
    metadata: dict[str, MetadataValue] = {
        **NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head, n_head_kv).metadata(
            read.epsilon("layer_norm_epsilon")
        ),
        "attention.max_alibi_bias": read.number(
            "attn_config.alibi_bias_max", default=8.0, low=1.0, high=100.0
        ),
        **({"attention.clamp_kqv": clip} if clip else {}),
    }
    # the graph divides every product of q and k by sqrt(head_dim)
    factor = head_dim**0.5 * read.number(
        "attn_config.softmax_scale", default=head_dim**-0.5, low=1e-6, high=1e6
    )
    if abs(factor - 1) < 1e-6:
        factor = 1.0
    if clip and factor != 1.0:
        raise ConfigError(
            "config.json: attn_config has both softmax_scale and clip_qkv; llama.cpp's graph has "
            "a fixed scale after clipping"
        )
    n_qkv = n_embd + 2 * n_head_kv * head_dim
    tied = read.flag("tie_word_embeddings", default=True)
    return Network(
        architecture="MptForCausalLM",
        graph="mpt",
        metadata=metadata,
        rules=(
            *_outer_rules(n_embd, n_vocab, tied=tied),
            *(r for i in range(n_layer) for r in _layer_rules(i, n_embd, n_ff, n_qkv, factor)),
        ),
        prefixes=("transformer.", ""),
        ignored=(r"lm_head\.weight",) if tied else (),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_ctx,
        n_head_kv=n_head_kv,
        erf_gelu=True,
    )


def _key_heads(read: ConfigReader, n_head: int) -> int:
    """Heads with keys of their own, after a look at what the graph does not have."""
    for key, usual in _MUST_BE:
        if read.flag(f"attn_config.{key}", default=usual) is not usual:
            raise ConfigError(
                f"config.json: attn_config.{key} is {str(not usual).lower()}; supported is "
                f"{str(usual).lower()}"
            )
    if read.flag("no_bias", default=True) is not True:
        raise ConfigError("config.json: no_bias is false; supported are models without biases")
    if read.find("logit_scale") is not None:
        raise ConfigError("config.json: logit_scale is set; llama.cpp's graph has no such factor")
    for key, known in (("norm_type", _NORMS), ("attn_config.attn_type", _KINDS)):
        value = read.find(key)
        if value is not None and value not in known:
            raise ConfigError(f"config.json: {key} is {value!r}; supported are {', '.join(known)}")
    kind = read.find("attn_config.attn_type") or _KINDS[0]
    default = 1 if kind == _KINDS[1] else n_head
    n_head_kv = read.count("attn_config.kv_n_heads", default=default, most=n_head)
    if n_head % n_head_kv:
        raise ConfigError(f"config.json: {n_head} heads for {n_head_kv} key heads")
    return n_head_kv


def _outer_rules(n_embd: int, n_vocab: int, *, tied: bool) -> tuple[TensorRule, ...]:
    return (
        tensor("token_embd.weight", Role.TOKEN_EMBEDDING, Part("wte.weight", (n_vocab, n_embd))),
        tensor("output_norm.weight", Role.NORM, Part("norm_f.weight", (n_embd,))),
        *own_head(n_vocab, n_embd, tied=tied),
    )


def _layer_rules(
    layer: int, n_embd: int, n_ff: int, n_qkv: int, q_factor: float
) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"blocks.{layer}"

    def weight(target: str, source: str, shape: tuple[int, ...], role: Role) -> TensorRule:
        part = Part(f"{there}.{source}.weight", shape)
        return tensor(f"{here}.{target}.weight", role, part, layer=layer)

    qkv = weight("attn_qkv", "attn.Wqkv", (n_qkv, n_embd), Role.ATTN_QKV)
    return (
        weight("attn_norm", "norm_1", (n_embd,), Role.NORM),
        with_scaled_rows(qkv, q_factor, n_embd),
        weight("attn_output", "attn.out_proj", (n_embd, n_embd), Role.ATTN_OUTPUT),
        weight("ffn_norm", "norm_2", (n_embd,), Role.NORM),
        weight("ffn_up", "ffn.up_proj", (n_ff, n_embd), Role.FFN_UP),
        weight("ffn_down", "ffn.down_proj", (n_embd, n_ff), Role.FFN_DOWN),
    )
