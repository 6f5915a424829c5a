"""CodeGen (codegen-350M to 16B, nsql, ...) on llama.cpp's ``phi2`` graph.

The network is GPT-J's, but its queries, keys and values are one fused matrix, see
:class:`~.transforms.UnfuseCodeGen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import gptj
from .network import ConfigError, Network, Part, Role, TensorRule, tensor
from .transforms import UnfuseCodeGen


def describe(config: Mapping[str, Any]) -> Network:
    """Describe a ``CodeGenForCausalLM``."""
    network = gptj.describe(config)
    n_head = network.n_head
    if n_head % UnfuseCodeGen.N_PARTS:
        raise ConfigError(
            f"config.json: {n_head} heads; expected a multiple of {UnfuseCodeGen.N_PARTS}, by "
            "which qkv_proj is cut"
        )
    unfuse = UnfuseCodeGen(n_head, network.head_dim, network.n_rot)
    return replace(
        network,
        architecture="CodeGenForCausalLM",
        rules=tuple(_with_fused_qkv(rule, network.n_embd, unfuse) for rule in network.rules),
        ignored=(*network.ignored, r"h\.\d+\.attn\.causal_mask"),
    )


def _with_fused_qkv(rule: TensorRule, n_embd: int, unfuse: UnfuseCodeGen) -> TensorRule:
    """GPT-J's rule; that of the three projections takes the fused one."""
    if rule.role is not Role.ATTN_QKV:
        return rule
    fused = Part(f"h.{rule.layer}.attn.qkv_proj.weight", (3 * n_embd, n_embd), unfuse)
    return tensor(rule.target, rule.role, fused, layer=rule.layer)
