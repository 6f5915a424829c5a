"""GPT-Neo (gpt-neo-125m to 2.7B, TinyStories) on llama.cpp's ``mpt`` graph.

Some layers see only a window of tokens, which our kernels compute: see :mod:`.windows`. A model
that has none, or whose window is its context, goes on the ``gpt2`` graph.
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
from .scaling import with_scaled_rows
from .windows import LONGEST_WINDOW, WINDOW_GRAPH, Windows

_LOCAL, _GLOBAL = "local", "global"


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``GPTNeoForCausalLM``."""
    read = ConfigReader(config)
    n_embd = read.count("hidden_size")
    n_layer = read.count("num_layers", "num_hidden_layers", most=MOST_LAYERS)
    n_head = read.count("num_heads", "num_attention_heads", most=MOST_HEADS)
    n_ff = read.count("intermediate_size", default=4 * n_embd)
    n_trained = read.count("max_position_embeddings", default=2048)
    n_vocab = read.count("vocab_size")
    head_dim = head_dim_of(n_embd, n_head)
    tied = read.flag("tie_word_embeddings", default=True)
    windows = _windows(read, n_layer, n_trained)
    remark = (
        f"context: beyond {windows.size if windows else 0} tokens only infer-os' kernels are "
        "exact: some layers see a window of that length, which llama.cpp's graph does not have"
    )
    sizes = NetworkSizes(n_trained, n_embd, n_layer, n_ff, n_head)
    return Network(
        architecture="GPTNeoForCausalLM",
        graph=WINDOW_GRAPH if windows else "gpt2",
        metadata=sizes.metadata(read.epsilon("layer_norm_epsilon")),
        rules=(
            *_outer_rules(n_embd, n_vocab, n_trained, tied=tied),
            # the graph divides every product of q and k by sqrt(head_dim), GPT-Neo does not
            *(r for i in range(n_layer) for r in _layer_rules(i, n_embd, n_ff, head_dim**0.5)),
        ),
        prefixes=("transformer.", ""),
        ignored=(
            *((r"lm_head\.weight",) if tied else ()),
            r"h\.\d+\.attn\.attention\.(bias|masked_bias)",
        ),
        vocab_rows=n_vocab,
        n_layer=n_layer,
        n_head=n_head,
        head_dim=head_dim,
        n_embd=n_embd,
        n_ctx=n_trained,
        erf_gelu=read.erf_gelu("activation_function", default="gelu_new"),
        windows=windows,
        remarks=(remark,) if windows else (),
    )


def _windows(read: ConfigReader, n_layer: int, n_trained: int) -> Windows | None:
    """The layers that see less than the whole context."""
    kinds = _layer_kinds(read, n_layer)
    local = tuple(layer for layer, kind in enumerate(kinds) if kind == _LOCAL)
    size = read.count("window_size", default=256)
    if not local or size >= n_trained:
        return None
    if size > LONGEST_WINDOW:
        raise ConfigError(
            f"config.json: window_size is {size}; supported are windows of up to {LONGEST_WINDOW}"
        )
    return Windows(size, local)


def _layer_kinds(read: ConfigReader, n_layer: int) -> list[str]:
    """Which layers see everything and which a window: a list, or kinds and how often they recur."""
    kinds = read.find("attention_layers")
    if kinds is None:
        kinds = []
        entries = read.find("attention_types") or [[[_GLOBAL, _LOCAL], (n_layer + 1) // 2]]
        for entry in entries if isinstance(entries, list) else [entries]:
            match entry:
                case [list(names), int(times)] if 0 < times <= MOST_LAYERS:
                    kinds += names[:n_layer] * times
                case _:
                    raise ConfigError(f"config.json: attention_types has {entry!r}")
        kinds = kinds[:n_layer]
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise ConfigError(f"config.json: attention_layers is not a list of {n_layer} kinds")
    for kind in kinds:
        if kind not in (_LOCAL, _GLOBAL):
            raise ConfigError(
                f"config.json: a layer's attention is {kind!r}; supported are {_GLOBAL}, {_LOCAL}"
            )
    return kinds


def _outer_rules(
    n_embd: int, n_vocab: int, n_trained: int, *, tied: bool
) -> tuple[TensorRule, ...]:
    positions = Part("wpe.weight", (n_trained, n_embd))
    return (
        tensor("token_embd.weight", Role.TOKEN_EMBEDDING, Part("wte.weight", (n_vocab, n_embd))),
        tensor("position_embd.weight", Role.POSITION_EMBEDDING, positions),
        *affine("output_norm", "ln_f", (n_embd,), Role.NORM),
        *own_head(n_vocab, n_embd, tied=tied),
    )


def _layer_rules(layer: int, n_embd: int, n_ff: int, q_factor: float) -> tuple[TensorRule, ...]:
    here, there = f"blk.{layer}", f"h.{layer}"
    pair = partial(affine, layer=layer)
    square = (n_embd, n_embd)
    projections = [Part(f"{there}.attn.attention.{name}_proj.weight", square) for name in "qkv"]
    qkv = tensor(f"{here}.attn_qkv.weight", Role.ATTN_QKV, *projections, layer=layer)
    return (
        *pair(f"{here}.attn_norm", f"{there}.ln_1", (n_embd,), Role.NORM),
        with_scaled_rows(qkv, q_factor),
        TensorRule(f"{here}.attn_qkv.bias", Role.BIAS, (3 * n_embd,), (), layer),
        *pair(f"{here}.attn_output", f"{there}.attn.attention.out_proj", square, Role.ATTN_OUTPUT),
        *pair(f"{here}.ffn_norm", f"{there}.ln_2", (n_embd,), Role.NORM),
        *pair(f"{here}.ffn_up", f"{there}.mlp.c_fc", (n_ff, n_embd), Role.FFN_UP),
        *pair(f"{here}.ffn_down", f"{there}.mlp.c_proj", (n_embd, n_ff), Role.FFN_DOWN),
    )
