"""Fold an orthonormal rotation into the attention weights, so that a quantized KV cache loses less.

A few channels of a K or V row are often far larger than the others, and a block-quantized row
spends its bits on them. Multiplied by an orthonormal Hadamard matrix H, the row's energy is spread
evenly. llama.cpp does that at run time for head sizes divisible by 64; here it is done once, to
the weights:

- V: ``W_v' = H W_v`` and ``b_v' = H b_v`` per head, undone by ``W_o' = W_o H^T``. Exact, since
  attention only averages V rows.
- K and Q: rows without rotary embedding, both by the same H: ``(H q) (H k) = q k``.

The network computes the same function, up to float32 rounding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from .network import ConfigError, Network, Part, Role, TensorRule
from .transforms import Fold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Metadata key that tells the runtime that K and V rows are already rotated.
ROTATION_KEY = "inferos.kv_rotation"
#: Its value.
ROTATION = "hadamard"


def fold_rotation(network: Network) -> Network:
    """The same network with the rotation folded into its q, k, v and output weights.

    Raises:
        ConfigError: its values are clipped, which a rotation before it would change.
    """
    if network.metadata.get("attention.clamp_kqv"):
        raise ConfigError(
            "config.json: attn_config.clip_qkv is set: a rotation cannot be folded into these "
            "weights, since q, k and v are clipped after them"
        )
    n_embd, head_dim = network.n_embd, network.head_dim
    free = head_dim - network.n_rot
    n_kv = network.n_kv
    # target rows of the stacked q, k, v: which are rotated, and how much of each head
    turns = [(0, n_embd, free), (n_embd, n_kv, free), (n_embd + n_kv, n_kv, head_dim)]
    rules = []
    for rule in network.rules:
        if rule.role is Role.ATTN_QKV or rule.target.endswith("attn_qkv.bias"):
            rules.append(_fold_rows(rule, turns, head_dim))
        elif rule.role is Role.ATTN_OUTPUT:
            fold = Fold(head_dim, head_dim, columns=True)
            rules.append(replace(rule, parts=tuple(replace(p, folds=(fold,)) for p in rule.parts)))
        else:
            rules.append(rule)
    return replace(network, rules=tuple(rules))


def _fold_rows(rule: TensorRule, turns: list[tuple[int, int, int]], head_dim: int) -> TensorRule:
    parts: list[Part] = []
    begin = 0
    for part in rule.parts:
        n_rows = part.target_shape[0]
        folds = tuple(
            Fold(head_dim, size, first - begin, first - begin + width)
            for first, width, size in turns
            if size > 1 and begin <= first < begin + n_rows
        )
        parts.append(replace(part, folds=folds))
        begin += n_rows
    return replace(rule, parts=tuple(parts))


@cache
def orthonormal(n: int) -> NDArray[np.float32]:
    """An orthonormal (n, n) matrix with entries as equal in size as possible.

    A Hadamard matrix over sqrt(n) where Sylvester's doubling of Paley's first construction gives
    one (R. Paley, "On orthogonal matrices", 1933); else copies of a smaller one, diagonally.
    """
    import numpy as np

    hadamard = _hadamard(n)
    if hadamard is not None:
        scaled: NDArray[np.float32] = (hadamard / np.sqrt(n)).astype(np.float32)
        return scaled
    block = next(size for size in range(n - 1, 0, -1) if n % size == 0 and _exists(size))
    blocks: NDArray[np.float32] = np.kron(np.eye(n // block, dtype=np.float32), orthonormal(block))
    return blocks


def _exists(n: int) -> bool:
    return _hadamard(n) is not None


def _hadamard(n: int) -> NDArray[np.float64] | None:
    """A (n, n) matrix of +1 and -1 with orthogonal rows, or None if the constructions give none."""
    import numpy as np

    if n == 1:
        return np.ones((1, 1))
    if n >= 4 and n % 4 == 0 and _is_prime(n - 1):
        return _paley(n - 1)
    half = _hadamard(n // 2) if n % 2 == 0 else None
    return None if half is None else np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), half)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))


def _paley(q: int) -> NDArray[np.float64]:
    """The (q + 1, q + 1) Hadamard matrix of a prime q with q % 4 == 3."""
    import numpy as np

    squares = {i * i % q for i in range(1, q)}
    residue = np.array([0] + [1 if i in squares else -1 for i in range(1, q)], np.float64)
    index = np.arange(q)
    jacobsthal = residue[(index[None, :] - index[:, None]) % q]  # (q, q)
    skew = np.zeros((q + 1, q + 1))
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, jacobsthal
    return skew + np.eye(q + 1)
