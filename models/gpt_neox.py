"""GPT-NeoX (gpt-neox-20b, Pythia, Dolly, ...) on llama.cpp's ``gptneox`` graph."""

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
from .transforms import UnfuseQKV

# an angle of 1e-30 for each position is 0 in float32
_NO_ROTATION: dict[str, MetadataValue] = {
    "rope.scaling.type": "linear", "rope.scaling.factor": 1e30,
}  # fmt: skip

_USUAL_YARN = (
    ("beta_fast", 32), ("beta_slow", 1), ("truncate", True), ("mscale", 0), ("mscale_all_dim", 0)
)  # fmt: skip


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``GPTNeoXForCausalLM``.

    Rotary settings are read in both spellings: ``rotary_pct`` / ``rotary_emb_base``, and the
    ``rope_parameters`` table that transformers 5 writes.
    """
    read = ConfigReader(config)
    n_embd = read.count("hidden_size")
    n_layer = read.count("num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("intermediate_size", default=4 * n_embd)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    n_rot = _rotary_dimensions(read, head_dim)
    tied = read.flag("tie_word_embeddings", default=False)
    biased = read.flag("attention_bias", default=True)
    n_ctx = read.count("max_position_embeddings", default=2048)
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head)
    metadata: dict[str, MetadataValue] = {
        **sizes.metadata(read.epsilon("layer_norm_eps")),
        "use_parallel_residual": read.flag("use_parallel_residual", default=True),
        # the graph always rotates: without rotary dimensions, two of them by an angle of nothing
        "rope.dimension_count": n_rot or 2,
        "rope.freq_base": read.number(
            "rope_parameters.rope_theta", "rotary_emb_base", "rope_theta",
            default=10000.0, low=1.0, high=1e9,
        ),
        **(_rope_scaling(read, n_ctx) if n_rot else _NO_ROTATION),
    }  # fmt: skip
    return Network(
        architecture="GPTNeoXForCausalLM",
        graph="gptneox",
        metadata=metadata,
        rules=(
            *_outer_rules(n_embd, n_vocab, tied=tied),
            *(
                rule
                for layer in range(n_layer)
                for rule in _layer_rules(layer, n_embd, n_ff, UnfuseQKV(n_head, head_dim), biased)
            ),
        ),
        prefixes=("",),
        ignored=(
            *((r"(embed_out|lm_head)\.weight",) if tied else ()),
            r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
            r"gpt_neox\.rotary_emb\.inv_freq",
        ),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_rot=n_rot,
        n_ctx=n_ctx,
        erf_gelu=read.erf_gelu("hidden_act", default="gelu"),
    )


def _rotary_dimensions(read: ConfigReader, head_dim: int) -> int:
    """Dimensions of a head that are rotated."""
    fraction = read.number(
        "rope_parameters.partial_rotary_factor", "rotary_pct", default=0.25, low=0.0, high=1.0
    )
    n_rot = int(head_dim * fraction)
    if n_rot % 2 or (fraction and not n_rot):
        raise ConfigError(
            f"config.json: rotary_pct {fraction:g} of a head of {head_dim} is {n_rot} "
            "dimensions; expected 0 or an even number of at least 2"
        )
    return n_rot


def _rope_scaling(read: ConfigReader, n_ctx: int) -> dict[str, MetadataValue]:
    """How positions are scaled, in both spellings; see transformers' modeling_rope_utils.py.

    Raises:
        ConfigError: in a way that the graph does not have, such as by the length of the text.
    """

    def setting(name: str, *, default: float, low: float = 1e-6) -> float:
        keys = [f"{table}.{name}" for table in ("rope_parameters", "rope_scaling")]
        return read.number(*keys, default=default, low=low, high=1e9)

    kind = read.find("rope_scaling.type", "rope_scaling.rope_type", "rope_parameters.rope_type")
    if kind in (None, "default"):
        return {}
    if kind not in ("linear", "yarn"):
        raise ConfigError(
            f"config.json: rope scaling {kind!r} is not supported; supported are linear and yarn"
        )
    if read.find("rope_parameters.factor", "rope_scaling.factor") is None:
        raise ConfigError(f"config.json: rope scaling {kind!r} without a factor")
    original = int(setting("original_max_position_embeddings", default=n_ctx, low=1))
    factor = setting("factor", default=1.0)
    scaling: dict[str, MetadataValue] = {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "linear":
        return scaling
    for key, usual in _USUAL_YARN:
        value = read.find(f"rope_parameters.{key}", f"rope_scaling.{key}")
        if value is not None and value != usual:
            raise ConfigError(
                f"config.json: {key} of yarn is {value!r}; llama.cpp's graph has it {usual!r}"
            )
    # llama.cpp multiplies by this itself
    own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return scaling | {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": setting("attention_factor", default=own) / own,
    }


def _outer_rules(n_embd: int, n_vocab: int, *, tied: bool) -> tuple[TensorRule, ...]:
    embedding = Part("gpt_neox.embed_in.weight", (n_vocab, n_embd))
    # the graph has no tied head: a tied checkpoint's embedding is written a second time
    # state dicts of transformers 5, saved without its renaming, say lm_head
    own = Part("embed_out.weight", (n_vocab, n_embd), also=("lm_head.weight",))
    head = embedding if tied else own
    return (
        tensor("token_embd.weight", Role.TOKEN_EMBEDDING, embedding),
        *affine("output_norm", "gpt_neox.final_layer_norm", (n_embd,), Role.NORM),
        tensor("output.weight", Role.HEAD, head),
    )


def _layer_rules(
    layer: int, n_embd: int, n_ff: int, unfuse: UnfuseQKV, attention_bias: bool
) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"gpt_neox.layers.{layer}"
    pair = partial(affine, layer=layer)
    attention = partial(pair, bias=attention_bias)
    return (
        *pair(f"{here}.attn_norm", f"{there}.input_layernorm", (n_embd,), Role.NORM),
        *attention(
            f"{here}.attn_qkv", f"{there}.attention.query_key_value", (3 * n_embd, n_embd),
            Role.ATTN_QKV, transform=unfuse,
        ),
        *attention(
            f"{here}.attn_output", f"{there}.attention.dense", (n_embd, n_embd), Role.ATTN_OUTPUT
        ),
        *pair(f"{here}.ffn_norm", f"{there}.post_attention_layernorm", (n_embd,), Role.NORM),
        *pair(f"{here}.ffn_up", f"{there}.mlp.dense_h_to_4h", (n_ff, n_embd), Role.FFN_UP),
        *pair(f"{here}.ffn_down", f"{there}.mlp.dense_4h_to_h", (n_embd, n_ff), Role.FFN_DOWN),
    )  # fmt: skip
