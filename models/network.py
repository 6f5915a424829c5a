"""The records that describe a network, and the reader for the config values behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from infer_os.errors import Error

from .made import Made
from .transforms import AsStored, Fold, Scale, Transform
from .windows import Windows


class ConfigError(Error, ValueError):
    """A ``config.json`` that cannot be used: says which key and what was expected."""


class Role(Enum):
    """What a tensor does; decides its type in a quantized file and its line in the report."""

    TOKEN_EMBEDDING = "token embedding"
    POSITION_EMBEDDING = "position embedding"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"
    ATTN_QKV = "attention q,k,v"
    ATTN_OUTPUT = "attention output"
    FFN_UP = "feed-forward up"
    FFN_DOWN = "feed-forward down"


@dataclass(frozen=True, slots=True)
class Part:
    """A stored tensor: its name without optional prefix, its shape (rows first), its transform.

    ``scales`` multiply some of its rows by a number, after the reordering; then ``folds`` multiply
    its rows or columns by a rotation. ``also`` lists other names that files use for it.
    """

    source: str
    shape: tuple[int, ...]
    transform: Transform = field(default_factory=AsStored)
    folds: tuple[Fold, ...] = ()
    scales: tuple[Scale, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Its shape in the file."""
        return self.transform.target_shape(self.shape)


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor of the GGUF: llama.cpp's name, its shape, and the parts whose rows it stacks.

    ``layer`` is the block it belongs to. Without parts, the graph needs what the checkpoint lacks:
    it is ``made``, or filled with zeros.
    """

    target: str
    role: Role
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    layer: int | None = None
    made: Made | None = None


MetadataValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Network:
    """A network as the converter needs it.

    ``graph`` is the llama.cpp architecture that computes it, ``metadata`` the keys it reads under
    ``{graph}.``. ``prefixes`` are the spellings of a common prefix that real files put in front
    of the sources (including ``""`` if it may be missing). ``ignored`` are regular
    expressions for stored tensors that carry no weights (mask buffers, rotary tables, a second
    copy of a tied head). ``vocab_rows`` is the number of rows of the embedding, ``n_rot`` the
    rotary dimensions of a head, ``n_head_kv`` the heads that have keys of their own (0: all).
    ``windows`` are layers that see only the last tokens. ``remarks`` are further notes for users.
    ``erf_gelu``: its GELU is the one by the error function, which llama.cpp's own kernels compute
    by tanh (the two differ by less than 5e-4).
    """

    architecture: str
    graph: str
    metadata: Mapping[str, MetadataValue]
    rules: tuple[TensorRule, ...]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    vocab_rows: int
    n_layer: int
    n_head: int
    head_dim: int
    n_embd: int
    n_ctx: int
    n_rot: int = 0
    erf_gelu: bool = False
    n_head_kv: int = 0
    windows: Windows | None = None
    remarks: tuple[str, ...] = ()

    @property
    def n_kv(self) -> int:
        """Width of all keys of a token."""
        return (self.n_head_kv or self.n_head) * self.head_dim

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know about differences between the checkpoint and the graph."""
        return (*((_ERF_NOTE,) if self.erf_gelu else ()), *self.remarks)

    @property
    def n_params(self) -> int:
        """Weights in the checkpoint; a tensor shared by two rules counts once."""
        stored = {part.source: part.shape for rule in self.rules for part in rule.parts}
        return sum(math.prod(shape) for shape in stored.values())


def tensor(target: str, role: Role, *parts: Part, layer: int | None = None) -> TensorRule:
    """The rule for a tensor that stacks the rows of one or more parts."""
    rows = sum(part.target_shape[0] for part in parts)
    return TensorRule(target, role, (rows, *parts[0].target_shape[1:]), parts, layer)


def affine(
    target: str,
    source: str,
    shape: tuple[int, ...],
    role: Role,
    *,
    transform: Transform | None = None,
    layer: int | None = None,
    bias: bool = True,
) -> tuple[TensorRule, TensorRule]:
    """The rules for ``{source}.weight`` of ``shape`` and its bias, one value per target row.

    The bias of a norm has the role NORM, any other bias the role BIAS. Without ``bias`` the
    checkpoint has none, and zeros take its place in the graph.
    """
    change = transform or AsStored()
    weight = tensor(f"{target}.weight", role, Part(f"{source}.weight", shape, change), layer=layer)
    bias_role = role if role is Role.NORM else Role.BIAS
    n_rows = weight.shape[0]
    parts = (Part(f"{source}.bias", (n_rows,), change.for_bias()),) if bias else ()
    return weight, TensorRule(f"{target}.bias", bias_role, (n_rows,), parts, layer)


def own_head(n_vocab: int, n_embd: int, *, tied: bool) -> tuple[TensorRule, ...]:
    """The rule for ``lm_head.weight``; none if it is the embedding's."""
    if tied:
        return ()
    return (tensor("output.weight", Role.HEAD, Part("lm_head.weight", (n_vocab, n_embd))),)


# No model of these families comes near these limits; a file above them is broken or hostile.
_LARGEST = 1 << 24
#: Most blocks: each makes a dozen rules before any tensor is looked up. BLOOM has 70.
MOST_LAYERS = 1 << 10
#: Most heads in a block. BLOOM has 112.
MOST_HEADS = 1 << 12


class ConfigReader:
    """Reads typed, bounded values from a config, each under one of several spellings."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def find(self, *keys: str) -> Any:
        """The value of the first key that is present and not null, else None.

        A dotted key reaches into a nested table (``rope_parameters.rope_theta``).
        """
        for key in keys:
            value: Any = self._config
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None

    def count(self, *keys: str, default: int | None = None, most: int = _LARGEST) -> int:
        """A whole number from 1 to ``most``."""
        value = self.find(*keys)
        if value is None:
            if default is None:
                raise ConfigError(f"config.json has no {' or '.join(map(repr, keys))}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(
                f"config.json: {keys[0]!r} is {value!r}; expected a whole number from 1 to {most}"
            )
        return value

    def number(self, *keys: str, default: float, low: float, high: float) -> float:
        """A real number with ``low <= value <= high``."""
        value = self.find(*keys)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"config.json: {keys[0]!r} is {value!r}; expected a number")
        if not low <= value <= high:
            raise ConfigError(
                f"config.json: {keys[0]!r} is {value!r}; expected {low:g} to {high:g}"
            )
        return float(value)

    def epsilon(self, key: str) -> float:
        """What a norm adds to the variance; 1e-5 by default."""
        return self.number(key, default=1e-5, low=0.0, high=1.0)

    def flag(self, *keys: str, default: bool) -> bool:
        """True or false."""
        value = self.find(*keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"config.json: {keys[0]!r} is {value!r}; expected true or false")
        return value

    def erf_gelu(self, *keys: str, default: str) -> bool:
        """Whether the activation is a GELU by the error function, and not by tanh.

        Raises:
            ConfigError: it is no GELU.
        """
        return self._activation(keys, default, (*_TANH_GELUS, _ERF)) == _ERF

    def relu_or_erf_gelu(self, *keys: str, default: str) -> tuple[bool, bool]:
        """Whether the activation is ReLU, and whether it is a GELU by the error function.

        Raises:
            ConfigError: it is neither ReLU nor a GELU.
        """
        value = self._activation(keys, default, (*_TANH_GELUS, _ERF, _RELU))
        return value == _RELU, value == _ERF

    def _activation(self, keys: tuple[str, ...], default: str, known: tuple[str, ...]) -> str:
        value = self.find(*keys) or default
        if value not in known:
            raise ConfigError(
                f"config.json: {keys[0]!r} is {value!r}; supported are {', '.join(known)}"
            )
        return str(value)


@dataclass(frozen=True, slots=True)
class NetworkSizes:
    """The sizes that every network of these families has; ``n_head_kv`` is 0 for ``n_head``."""

    n_ctx: int
    n_embd: int
    n_layer: int
    n_ff: int
    n_head: int
    n_head_kv: int = 0

    def metadata(self, epsilon: float) -> dict[str, MetadataValue]:
        """The llama.cpp keys that every graph reads; ``epsilon`` is that of the norms."""
        return {
            "context_length": self.n_ctx,
            "embedding_length": self.n_embd,
            "block_count": self.n_layer,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv or self.n_head,
            "attention.layer_norm_epsilon": epsilon,
        }


#: Metadata key that tells our kernels which GELU the checkpoint has, and its value for erf.
GELU_KEY, ERF_GELU = "inferos.gelu", "erf"

_ERF_NOTE = "activation: llama.cpp's own kernels compute the erf GELU in its tanh form"
_TANH_GELUS = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")
_ERF, _RELU = "gelu", "relu"


def head_dim_of(n_embd: int, n_head: int) -> int:
    """Width of a head.

    Raises:
        ConfigError: the heads do not divide the embedding.
    """
    if n_embd % n_head:
        raise ConfigError(f"config.json: {n_head} heads do not divide an embedding of {n_embd}")
    return n_embd // n_head
