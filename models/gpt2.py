"""GPT-2 (gpt2-xl, distilgpt2, DialoGPT, Cerebras-GPT, ...) on llama.cpp's ``gpt2`` graph.

One with ReLU goes on the ``mpt`` graph, see :func:`~.scaling.relu_feed_forward`. The scales of a
maximal update parametrization (muP), which Cerebras' configs name, go into the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from .scaling import relu_feed_forward, with_scaled_rows
from .transforms import Transpose

# settings that change the computation in ways that the graph does not support
_MUST_BE = (("add_cross_attention", False),)


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``GPT2LMHeadModel``."""
    read = ConfigReader(config)
    n_embd = read.count("n_embd", "hidden_size")
    n_layer = read.count("n_layer", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("n_head", "num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("n_inner", default=4 * n_embd)
    n_ctx = read.count("n_positions", "n_ctx", "max_position_embeddings", default=1024)
    n_vocab = read.count("vocab_size")
    for key, usual in _MUST_BE:
        if read.flag(key, default=usual) is not usual:
            raise ConfigError(
                f"config.json: {key} is {str(not usual).lower()}; llama.cpp's graph has it "
                f"{str(usual).lower()}"
            )
    head_dim = head_dim_of(n_embd, n_head)
    # the graph divides every product of q and k by sqrt(head_dim): a config that differs is
    # handled by a factor on q
    if read.flag("scale_attn_weights", default=True):
        by_width = read.flag("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d", default=False)
        plain = 1.0 / math.sqrt(head_dim) if by_width else 1.0
    else:
        plain = math.sqrt(head_dim)
    by_layer = read.flag("scale_attn_by_inverse_layer_idx", default=False)
    factors = [plain / (i + 1) if by_layer else plain for i in range(n_layer)]
    tied = read.flag("tie_word_embeddings", default=True)
    sizes = NetworkSizes(n_ctx, n_embd, n_layer, n_ff, n_head)
    metadata = sizes.metadata(read.epsilon("layer_norm_epsilon"))
    relu, erf = read.relu_or_erf_gelu("activation_function", default="gelu_new")
    layers = [_layer_rules(i, n_embd, n_ff, factors[i]) for i in range(n_layer)]
    return Network(
        architecture="GPT2LMHeadModel",
        graph="mpt" if relu else "gpt2",
        metadata=metadata,
        rules=(
            *_scaled_outer_rules(read, _outer_rules(n_embd, n_vocab, n_ctx, tied=tied)),
            *(rule for rules in layers for rule in (relu_feed_forward(rules) if relu else rules)),
        ),
        prefixes=("transformer.", ""),
        ignored=(
            *((r"lm_head\.weight",) if tied else ()),
            r"h\.\d+\.attn\.(bias|masked_bias)",
        ),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_ctx,
        erf_gelu=erf,
    )


def _scaled_outer_rules(read: ConfigReader, rules: tuple[TensorRule, ...]) -> Iterator[TensorRule]:
    """The rules with muP's scales of the embeddings and of the logits.

    A tied head has the embedding's scale, too, so the last norm makes up for it, and scales the
    logits. Cerebras' BTLM (modeling_btlm.py) is where the scales are multiplied.
    """
    scale = partial(read.number, default=1.0, low=1e-6, high=1e6)
    embeddings = scale("mup_embeddings_scale", "embeddings_scale")
    logits = scale("output_logits_scale") * scale("mup_output_alpha") * scale("mup_width_scale")
    tied = all(rule.role is not Role.HEAD for rule in rules)
    factors = {
        Role.TOKEN_EMBEDDING: embeddings,
        Role.POSITION_EMBEDDING: embeddings,
        Role.NORM: logits / embeddings if tied else logits,
    }
    return (with_scaled_rows(rule, factors.get(rule.role, 1.0)) for rule in rules)


def _outer_rules(n_embd: int, n_vocab: int, n_ctx: int, *, tied: bool) -> tuple[TensorRule, ...]:
    return (
        tensor("token_embd.weight", Role.TOKEN_EMBEDDING, Part("wte.weight", (n_vocab, n_embd))),
        tensor(
            "position_embd.weight", Role.POSITION_EMBEDDING, Part("wpe.weight", (n_ctx, n_embd))
        ),
        *affine("output_norm", "ln_f", (n_embd,), Role.NORM),
        *own_head(n_vocab, n_embd, tied=tied),
    )


def _layer_rules(layer: int, n_embd: int, n_ff: int, q_factor: float) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"h.{layer}"
    norm = partial(affine, shape=(n_embd,), role=Role.NORM, layer=layer)
    linear = partial(affine, transform=Transpose(), layer=layer)
    qkv: tuple[TensorRule, ...] = linear(
        f"{here}.attn_qkv", f"{there}.attn.c_attn", (n_embd, 3 * n_embd), Role.ATTN_QKV
    )
    qkv = tuple(with_scaled_rows(rule, q_factor, n_embd) for rule in qkv)
    return (
        *norm(f"{here}.attn_norm", f"{there}.ln_1"),
        *qkv,
        *linear(f"{here}.attn_output", f"{there}.attn.c_proj", (n_embd, n_embd), Role.ATTN_OUTPUT),
        *norm(f"{here}.ffn_norm", f"{there}.ln_2"),
        *linear(f"{here}.ffn_up", f"{there}.mlp.c_fc", (n_embd, n_ff), Role.FFN_UP),
        *linear(f"{here}.ffn_down", f"{there}.mlp.c_proj", (n_ff, n_embd), Role.FFN_DOWN),
    )
