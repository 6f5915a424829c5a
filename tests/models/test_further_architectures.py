"""Architectures beside the four families: what their graphs do not have is one line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from infer_os.models.architectures import describe
from infer_os.models.catalog import find_model
from infer_os.models.made import Constant, Sinusoids
from infer_os.models.network import ConfigError, Network, TensorRule
from infer_os.models.rotation import fold_rotation
from infer_os.models.scaling import RELU_SCALE
from infer_os.models.transforms import Scale, SomeRows, UnfuseCodeGen
from infer_os.models.windows import Windows

CONFIGS: dict[str, dict[str, Any]] = {
    name: model.config
    for name in (
        "codegen-350M-mono", "starcoder", "opt-125m", "gpt-neo-125m", "xglm-564M", "mpt-7b",
        "gpt2", "pythia-70m",
    )
    if (model := find_model(name))
}  # fmt: skip


def described(name: str, **changes: Any) -> Network:
    return describe({**CONFIGS[name], **changes})


def rule_named(network: Network, target: str) -> TensorRule:
    return next(rule for rule in network.rules if rule.target == target)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        # opt-350m
        ("opt-125m", {"do_layer_norm_before": False}, "do_layer_norm_before is false"),
        ("opt-125m", {"word_embed_proj_dim": 512}, "word_embed_proj_dim is 512"),
        ("opt-125m", {"layer_norm_elementwise_affine": False}, "elementwise_affine is false"),
        ("opt-125m", {"activation_function": "silu"}, "supported are gelu_fast"),
        ("codegen-350M-mono", {"n_head": 2, "rotary_dim": 32}, "2 heads; expected a multiple of 4"),
        ("codegen-350M-mono", {"rotary_dim": 65}, "rotary_dim is 65"),
        ("starcoder", {"add_cross_attention": True}, "add_cross_attention is true"),
        ("starcoder", {"multi_query": 1}, "expected true or false"),
        ("starcoder", {"activation_function": "relu"}, "'relu'; supported are"),
        ("gpt-neo-125m", {"attention_types": [[["sparse"], 12]]}, "attention is 'sparse'"),
        ("gpt-neo-125m", {"attention_types": [[["global"], 5]]}, "not a list of 12 kinds"),
        ("gpt-neo-125m", {"attention_types": [["global", 12]]}, "attention_types has"),
        ("gpt-neo-125m", {"attention_types": 12}, "attention_types has 12"),
        ("gpt-neo-125m", {"attention_types": True}, "attention_types has True"),
        ("gpt-neo-125m", {"attention_types": "global"}, "attention_types has 'global'"),
        ("gpt-neo-125m", {"attention_types": [[["global"], 10**9]]}, "attention_types has"),
        ("gpt-neo-125m", {"window_size": 0}, "'window_size' is 0"),
        (
            "gpt-neo-125m", {"window_size": 4096, "max_position_embeddings": 8192},
            "windows of up to 2048",
        ),
        ("xglm-564M", {"activation_function": "relu"}, "'relu'; supported are"),
        ("mpt-7b", {"attn_config": {"alibi": False}}, "attn_config.alibi is false"),
        ("mpt-7b", {"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm is true"),
        ("mpt-7b", {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is true"),
        ("mpt-7b", {"attn_config": {"attn_type": "odd"}}, "attn_config.attn_type is 'odd'"),
        ("mpt-7b", {"attn_config": {"kv_n_heads": 5}}, "32 heads for 5 key heads"),
        ("mpt-7b", {"attn_config": {"clip_qkv": 6, "softmax_scale": 1.0}}, "both softmax_scale"),
        ("mpt-7b", {"no_bias": False}, "no_bias is false"),
        ("mpt-7b", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale is set"),
        ("mpt-7b", {"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'"),
        (
            "pythia-70m", {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "'dynamic' is not supported; supported are linear and yarn",
        ),
        ("pythia-70m", {"rope_scaling": {"type": "linear"}}, "'linear' without a factor"),
        (
            "pythia-70m", {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 0.7}},
            "mscale of yarn is 0.7",
        ),
    ],
)  # fmt: skip
def test_what_a_graph_does_not_have(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        described(name, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_other_layer_of_a_gpt_neo_has_a_window() -> None:
    network = described("gpt-neo-125m")
    assert (network.n_ctx, network.metadata["context_length"]) == (2048, 2048)
    assert rule_named(network, "position_embd.weight").shape == (2048, 768)
    assert network.graph == "mpt"
    assert network.windows == Windows(256, (1, 3, 5, 7, 9, 11))
    assert "beyond 256 tokens only infer-os' kernels" in network.notes[0]
    usual = described("gpt-neo-125m", window_size=None)
    assert usual.windows == network.windows


@pytest.mark.parametrize(
    "changes", [{"attention_types": [[["global"], 12]]}, {"window_size": 2048}], ids=str
)
def test_a_gpt_neo_without_windows_is_a_gpt2(changes: dict[str, Any]) -> None:
    network = described("gpt-neo-125m", **changes)
    assert (network.graph, network.windows, network.n_ctx, network.notes) == (
        "gpt2", None, 2048, (),
    )  # fmt: skip


def test_relu_is_a_gelu_of_large_values() -> None:
    for name in ("opt-125m", "gpt2"):
        network = described(name, activation_function="relu")
        assert network.graph == "mpt"
        for end in ("weight", "bias"):
            (part,) = rule_named(network, f"blk.11.ffn_up.{end}").parts
            assert part.scales == (Scale(0, 3072, RELU_SCALE),)
        scales = rule_named(network, "blk.11.ffn.act.scales")
        assert (scales.made, scales.shape) == (Constant(RELU_SCALE), (3072,))
    values = np.linspace(-8, 8, 100_001)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (RELU_SCALE * values) * (1 + 0.044715 * (
        RELU_SCALE * values) ** 2))  # fmt: skip
    gelu = 0.5 * values * (1 + tanh)
    assert np.abs(gelu - np.maximum(values, 0)).max() < 0.17 / RELU_SCALE


def test_mpt_is_as_its_config_says() -> None:
    metadata = described("mpt-7b").metadata
    assert metadata["attention.max_alibi_bias"] == 8.0
    assert "attention.clamp_kqv" not in metadata
    settings = {"clip_qkv": 6, "alibi_bias_max": 16, "kv_n_heads": 8}
    network = described("mpt-7b", attn_config=settings, architectures=["MPTForCausalLM"])
    assert network.metadata["attention.clamp_kqv"] == 6.0
    assert network.metadata["attention.max_alibi_bias"] == 16.0
    assert network.metadata["attention.head_count_kv"] == 8
    assert rule_named(network, "blk.0.attn_qkv.weight").shape == (4096 + 2 * 8 * 128, 4096)


def test_a_rotation_before_a_clip_is_refused() -> None:
    fold_rotation(described("mpt-7b"))
    with pytest.raises(ConfigError, match="clip_qkv is set"):
        fold_rotation(described("mpt-7b", attn_config={"clip_qkv": 6}))


def test_one_key_head_stays_one() -> None:
    assert described("starcoder").n_kv == 128
    assert described("starcoder", multi_query=False).n_kv == 6144


def test_rope_scaling_of_both_spellings() -> None:
    new = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    one = described("pythia-70m", rope_parameters={**new, "rope_theta": 10000.0})
    other = described("pythia-70m", rope_scaling={**new, "type": "yarn"})
    for network in (one, other):
        found = {k: v for k, v in network.metadata.items() if k.startswith("rope.scaling")}
        assert found == {
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 512, "rope.scaling.attn_factor": 1.0,
        }  # fmt: skip


def test_rows_of_codegen() -> None:
    """Four quarters of q, v, k, the first head's of each."""
    order = UnfuseCodeGen(n_head=4, head_dim=4, n_rot=2).row_order()
    assert order[:8].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert order[16:20].tolist() == [8, 9, 10, 11]
    assert order[32:36].tolist() == [4, 5, 6, 7]
    assert sorted(order) == list(range(48))
    turned = UnfuseCodeGen(n_head=4, head_dim=4, n_rot=4).row_order()
    assert turned[:4].tolist() == [0, 2, 1, 3]
    assert turned[32:36].tolist() == [4, 5, 6, 7]


def test_some_rows() -> None:
    rows = SomeRows(2, 5)
    assert rows.target_shape((9, 4)) == (3, 4)
    assert rows.row_order().tolist() == [2, 3, 4]


def test_sinusoids_are_those_of_fairseq() -> None:
    table = Sinusoids(2).values((3, 8))
    assert table.shape == (3, 8)
    for row in range(3):
        for i in range(4):
            angle = (row + 2) * 10000 ** (-i / 3)
            assert table[row, i] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[row, 4 + i] == pytest.approx(np.cos(angle), abs=1e-6)


MUP = {
    "mup_width_scale": 0.25, "mup_output_alpha": 6.0, "mup_embeddings_scale": 10.0,
    "mup_scale_qk_dot_by_d": True,
}  # fmt: skip


def scale_of(network: Network, target: str) -> float:
    """What the first rows of a tensor are multiplied by."""
    (part,) = rule_named(network, target).parts
    return math.prod(scale.factor for scale in part.scales if scale.first == 0)


@pytest.mark.parametrize("tied", [True, False])
def test_mup_goes_into_the_weights(tied: bool) -> None:
    network = described("gpt2", **MUP, tie_word_embeddings=tied)
    assert scale_of(network, "token_embd.weight") == scale_of(network, "position_embd.weight") == 10
    # a tied head is ten times too large, which the last norm makes up for
    for end in ("weight", "bias"):
        assert scale_of(network, f"output_norm.{end}") == pytest.approx(0.15 if tied else 1.5)
        assert scale_of(network, f"blk.3.attn_qkv.{end}") == pytest.approx(64**-0.5)
        assert scale_of(network, f"blk.3.attn_norm.{end}") == 1
    spelled = {
        "output_logits_scale": 1.5, "embeddings_scale": 10.0, "scale_qk_dot_by_d": True,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    assert described("gpt2", **spelled).rules == network.rules


@pytest.mark.parametrize("key", ["mup_width_scale", "mup_output_alpha", "mup_embeddings_scale"])
@pytest.mark.parametrize("value", [0, -1.0, "1", True, 1e9])
def test_mup_scales_that_cannot_be(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        described("gpt2", **{key: value})
