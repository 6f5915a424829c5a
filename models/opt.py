"""OPT (opt-125m to 66b, OPT-IML) and Galactica on llama.cpp's ``mpt`` graph.

The graph has everything but ReLU, see :func:`~.scaling.relu_feed_forward`; Galactica has GELU, and
no biases.
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
from .scaling import relu_feed_forward
from .transforms import SomeRows

# rows of the table of positions before that of the first token
_OFFSET = 2
# what the graph does not have: opt-350m has the norms behind its blocks
_MUST_BE = (
    ("do_layer_norm_before", True), ("layer_norm_elementwise_affine", True),
    ("_remove_final_layer_norm", False),
)  # fmt: skip


def describe(config: Mapping[str, Any]) -> Network:
    """Describe an ``OPTForCausalLM``."""
    read = ConfigReader(config)
    n_embd = read.count("hidden_size")
    n_layer = read.count("num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("ffn_dim", default=4 * n_embd)
    n_ctx = read.count("max_position_embeddings", default=2048)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    for key, usual in _MUST_BE:
        if read.flag(key, default=usual) is not usual:
            raise ConfigError(
                f"config.json: {key} is {str(not usual).lower()}; llama.cpp's graph has it "
                f"{str(usual).lower()}"
            )
    width = read.count("word_embed_proj_dim", default=n_embd)
    if width != n_embd:
        raise ConfigError(
            f"config.json: word_embed_proj_dim is {width}; llama.cpp's graph embeds in the width "
            f"of its layers, {n_embd}"
        )
    relu, erf = read.relu_or_erf_gelu("activation_function", default="relu")
    biased = read.flag("enable_bias", default=True)
    tied = read.flag("tie_word_embeddings", default=True)
    layers = [_layer_rules(i, n_embd, n_ff, biased) for i in range(n_layer)]
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head)
    return Network(
        architecture="OPTForCausalLM",
        graph="mpt",
        # OPT's class has no setting for it
        metadata=sizes.metadata(1e-5),
        rules=(
            *_outer_rules(n_embd, n_vocab, n_ctx, tied=tied),
            *(rule for rules in layers for rule in (relu_feed_forward(rules) if relu else rules)),
        ),
        prefixes=("model.decoder.", "decoder."),
        ignored=(r"lm_head\.weight",) if tied else (),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_ctx,
        erf_gelu=erf,
    )


def _outer_rules(n_embd: int, n_vocab: int, n_ctx: int, *, tied: bool) -> tuple[TensorRule, ...]:
    positions = Part(
        "embed_positions.weight", (n_ctx + _OFFSET, n_embd), SomeRows(_OFFSET, n_ctx + _OFFSET)
    )
    return (
        tensor(
            "token_embd.weight",
            Role.TOKEN_EMBEDDING,
            Part("embed_tokens.weight", (n_vocab, n_embd)),
        ),
        tensor("position_embd.weight", Role.POSITION_EMBEDDING, positions),
        *affine("output_norm", "final_layer_norm", (n_embd,), Role.NORM),
        *own_head(n_vocab, n_embd, tied=tied),
    )


def _layer_rules(layer: int, n_embd: int, n_ff: int, biased: bool) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"layers.{layer}"
    norm = partial(affine, shape=(n_embd,), role=Role.NORM, layer=layer)

    def linear(target: str, role: Role, shape: tuple[int, int], *names: str) -> list[TensorRule]:
        weights = [Part(f"{there}.{name}.weight", shape) for name in names]
        rules = [tensor(f"{here}.{target}.weight", role, *weights, layer=layer)]
        if biased:
            biases = [Part(f"{there}.{name}.bias", shape[:1]) for name in names]
            rules.append(tensor(f"{here}.{target}.bias", Role.BIAS, *biases, layer=layer))
        return rules

    square = (n_embd, n_embd)
    projections = [f"self_attn.{name}_proj" for name in "qkv"]
    return (
        *norm(f"{here}.attn_norm", f"{there}.self_attn_layer_norm"),
        *linear("attn_qkv", Role.ATTN_QKV, square, *projections),
        *linear("attn_output", Role.ATTN_OUTPUT, square, "self_attn.out_proj"),
        *norm(f"{here}.ffn_norm", f"{there}.final_layer_norm"),
        *linear("ffn_up", Role.FFN_UP, (n_ff, n_embd), "fc1"),
        *linear("ffn_down", Role.FFN_DOWN, (n_embd, n_ff), "fc2"),
    )
