"""A model's sizes, as a memory plan needs them: from a network, or from the header of a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .graphs import Positions, is_parallel, positions_of
from .network import Network, Role


@dataclass(frozen=True, slots=True)
class WeightOption:
    """The weights in one type: bytes in all, bytes read per token, bytes of the largest tensor.

    An embedding is read row by row and costs nothing per token, unless it is also the head.
    ``main`` is the tensor type that most bytes have; ``largest_of`` gives, for every type of
    multiplied matrices, the largest of them; ``kinds`` are the types of all tensors.
    """

    type: str
    n_bytes: int
    read_bytes: int
    largest: int
    main: str
    largest_of: tuple[tuple[str, int], ...]
    kinds: frozenset[str]


@dataclass(frozen=True, slots=True)
class SizedTensor:
    """A tensor as it will be stored. ``is_lookup``: its rows are looked up, not multiplied."""

    type: str
    n_bytes: int
    is_lookup: bool
    is_matrix: bool


def weight_option(type: str, tensors: Iterable[SizedTensor]) -> WeightOption:
    """Sum up the tensors."""
    total = read = largest = 0
    largest_of: dict[str, int] = {}
    sums: dict[str, int] = {}
    kinds: set[str] = set()
    for tensor in tensors:
        total += tensor.n_bytes
        kinds.add(tensor.type)
        largest = max(largest, tensor.n_bytes)
        if tensor.is_lookup:
            continue
        read += tensor.n_bytes
        if tensor.is_matrix:
            largest_of[tensor.type] = max(largest_of.get(tensor.type, 0), tensor.n_bytes)
            sums[tensor.type] = sums.get(tensor.type, 0) + tensor.n_bytes
    main = max(sums, key=lambda name: sums[name], default="f32")
    return WeightOption(
        type, total, read, largest, main, tuple(largest_of.items()), frozenset(kinds)
    )


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a network and the types that its weights can have, finest first.

    ``positions`` says how it knows where a token stands, ``parallel`` that attention and
    feed-forward read the same input (GPT-J always, GPT-NeoX by its config), ``rotates`` that
    llama.cpp may rotate a quantized cache (not needed if a rotation was folded into the weights).
    Some layers see only the last ``window`` tokens, unless it is 0.
    ``is_file`` says that the weights exist, in their only type, ``has_template`` that they come
    with a chat template.
    ``n_places`` are those of its tokens, see ``native.constraint``; 0 if they were not counted.
    """

    name: str
    graph: str
    n_layer: int
    n_embd: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    parallel: bool
    options: tuple[WeightOption, ...]
    positions: Positions | None = None
    rotates: bool = True
    is_file: bool = False
    has_template: bool = False
    n_places: int = 0
    window: int = 0

    def option(self, type: str) -> WeightOption:
        """The weights in that type.

        Raises:
            KeyError: not one of the options.
        """
        for option in self.options:
            if option.type == type:
                return option
        raise KeyError(type)


def network_shape(name: str, network: Network, options: tuple[WeightOption, ...]) -> ModelShape:
    """The shape of a network whose weights come in these options."""
    n_ff = max(rule.shape[0] for rule in network.rules if rule.role is Role.FFN_UP)
    return ModelShape(
        name=name,
        graph=network.graph,
        n_layer=network.n_layer,
        n_embd=network.n_embd,
        n_head_kv=network.n_head_kv or network.n_head,
        head_dim=network.head_dim,
        n_ff=n_ff,
        n_vocab=network.vocab_rows,
        n_ctx_train=network.n_ctx,
        parallel=is_parallel(network.graph, network.metadata.get("use_parallel_residual")),
        options=options,
        positions=positions_of(
            network.graph, any(r.role is Role.POSITION_EMBEDDING for r in network.rules)
        ),
        window=network.windows.size if network.windows else 0,
    )
