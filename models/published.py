"""What the catalog says of a model: its place on the hub, its sizes, how its config spells them.

Pure data: :attr:`CatalogModel.config` is as much of the model's ``config.json`` as
:func:`infer_os.models.architectures.describe` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NEOX, GPTJ, BLOOM, GPT2 = (
    "GPTNeoXForCausalLM", "GPTJForCausalLM", "BloomForCausalLM", "GPT2LMHeadModel"
)  # fmt: skip
CODEGEN, BIGCODE, OPT = "CodeGenForCausalLM", "GPTBigCodeForCausalLM", "OPTForCausalLM"
GPT_NEO, XGLM, MPT = "GPTNeoForCausalLM", "XGLMForCausalLM", "MptForCausalLM"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a network. ``rotary`` is the rotated share of a head, if heads are rotated.

    ``act`` is its activation, if its class does not decide that; ``extra`` are further settings of
    its config.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_ff: int
    n_vocab: int
    n_ctx: int
    rotary: float = 0.25
    parallel: bool = True
    biases: bool = True
    act: str = ""
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A published model.

    ``id`` is its hub id, ``aliases`` older or other ids of the same repository; ``revision`` is
    the branch to take; ``weights`` the format of its files (``safetensors``, or ``bin`` if the hub
    has no safetensors of it); ``dtype`` their type; ``draft`` the id of a small model with the same
    tokens; ``style`` how its conversations are written.
    """

    id: str
    architecture: str
    geometry: Geometry
    weights: str = "safetensors"
    dtype: str = "F16"
    revision: str = "main"
    draft: str | None = None
    style: str = "dialogue"
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The short name: the id without its owner."""
        return self.id.rpartition("/")[2]

    @property
    def config(self) -> dict[str, Any]:
        """The part of its config.json that gives its sizes."""
        return {
            "architectures": [self.architecture],
            **_SPELLINGS[self.architecture](self),
            **dict(self.geometry.extra),
        }


def _neox_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "hidden_size": g.n_embd, "num_hidden_layers": g.n_layer, "num_attention_heads": g.n_head,
        "intermediate_size": g.n_ff, "vocab_size": g.n_vocab, "max_position_embeddings": g.n_ctx,
        "rotary_pct": g.rotary, "use_parallel_residual": g.parallel, "hidden_act": "gelu",
        "tie_word_embeddings": False,
    }  # fmt: skip


def _gptj_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "n_embd": g.n_embd, "n_layer": g.n_layer, "n_head": g.n_head, "n_inner": g.n_ff,
        "vocab_size": g.n_vocab, "n_positions": g.n_ctx,
        "rotary_dim": int(g.n_embd // g.n_head * g.rotary), "tie_word_embeddings": False,
    }  # fmt: skip


def _bloom_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "hidden_size": g.n_embd, "n_layer": g.n_layer, "n_head": g.n_head,
        "vocab_size": g.n_vocab, "seq_length": g.n_ctx,
    }  # fmt: skip


def _gpt2_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "n_embd": g.n_embd, "n_layer": g.n_layer, "n_head": g.n_head, "n_inner": g.n_ff,
        "vocab_size": g.n_vocab, "n_positions": g.n_ctx,
    }  # fmt: skip


def _codegen_config(model: CatalogModel) -> dict[str, Any]:
    return {key: value for key, value in _gptj_config(model).items() if key != "n_inner"}


def _bigcode_config(model: CatalogModel) -> dict[str, Any]:
    return {**_gpt2_config(model), "multi_query": True}


def _opt_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "hidden_size": g.n_embd, "num_hidden_layers": g.n_layer, "num_attention_heads": g.n_head,
        "ffn_dim": g.n_ff, "vocab_size": g.n_vocab, "max_position_embeddings": g.n_ctx,
        "enable_bias": g.biases, "activation_function": g.act or "relu",
    }  # fmt: skip


def _gpt_neo_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "hidden_size": g.n_embd, "num_layers": g.n_layer, "num_heads": g.n_head,
        "intermediate_size": g.n_ff, "vocab_size": g.n_vocab, "window_size": 256,
        "max_position_embeddings": g.n_ctx,
    }  # fmt: skip


def _xglm_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "d_model": g.n_embd, "num_layers": g.n_layer, "attention_heads": g.n_head,
        "ffn_dim": g.n_ff, "vocab_size": g.n_vocab, "max_position_embeddings": g.n_ctx,
    }  # fmt: skip


def _mpt_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "d_model": g.n_embd, "n_layers": g.n_layer, "n_heads": g.n_head,
        "expansion_ratio": g.n_ff // g.n_embd, "vocab_size": g.n_vocab, "max_seq_len": g.n_ctx,
    }  # fmt: skip


_SPELLINGS: Mapping[str, Callable[[CatalogModel], dict[str, Any]]] = {
    NEOX: _neox_config, GPTJ: _gptj_config, BLOOM: _bloom_config, GPT2: _gpt2_config,
    CODEGEN: _codegen_config, BIGCODE: _bigcode_config, OPT: _opt_config,
    GPT_NEO: _gpt_neo_config, XGLM: _xglm_config, MPT: _mpt_config,
}  # fmt: skip


def sized(n_layer: int, n_embd: int, n_head: int, n_vocab: int, n_ctx: int) -> Geometry:
    """A geometry whose feed-forward is four times the embedding, as nearly all are."""
    return Geometry(n_layer, n_embd, n_head, 4 * n_embd, n_vocab, n_ctx)
