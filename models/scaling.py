"""Factors that a graph does not have, taken into the weights, and ReLU by a graph that has GELU.

Goes in: tensor rules. Come out: the same rules with their first parts' rows multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .made import Constant
from .network import Role, TensorRule
from .transforms import Scale

#: GELU(s x) / s differs from ReLU(x) by at most 0.17 / s. A power of two changes no digit of a
#: weight, and float16 holds weights up to 65504 / s.
RELU_SCALE = 4096.0


def with_scaled_rows(rule: TensorRule, factor: float, n_rows: int | None = None) -> TensorRule:
    """The rule with the first ``n_rows`` of its first part multiplied by ``factor``; None: all."""
    if factor == 1.0 or not rule.parts:
        return rule
    first, *others = rule.parts
    scale = Scale(0, n_rows or first.target_shape[0], factor)
    return replace(rule, parts=(replace(first, scales=(*first.scales, scale)), *others))


def relu_feed_forward(rules: Iterable[TensorRule]) -> Iterator[TensorRule]:
    """A layer's rules for llama.cpp's ``mpt`` graph, whose GELU comes as near to ReLU as floats.

    The graph divides GELU's results by ``ffn.act.scales``: what goes in is multiplied by them.
    """
    for rule in rules:
        head, _, name = rule.target.rpartition(".ffn_up.")
        if not head:
            yield rule
            continue
        yield with_scaled_rows(rule, RELU_SCALE)
        if name == "weight":
            yield TensorRule(
                f"{head}.ffn.act.scales", Role.BIAS, (rule.shape[0],), (), rule.layer,
                Constant(RELU_SCALE),
            )  # fmt: skip
