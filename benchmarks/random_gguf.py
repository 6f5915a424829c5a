"""Write a GGUF file of a known model's geometry with random weights, without any checkpoint.

    python benchmarks/random_gguf.py gpt-j-6B q4_0 OUT.gguf [--layers 4]

The type is one of ``convert --type``, any other that ``--bits`` may choose, or several in the form
``iq2_s+iq3_xxs+q4_k``, which the layers' matrices get in turn.

Tensors, types, sizes and the size of the vocabulary are those that ``convert`` would write; the
values are one random block row, repeated. For measuring memory and speed at real size.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from random_model import write_tokenizer

from infer_os.convert.conversion_plan import ConversionPlan, PlannedTensor
from infer_os.convert.gguf_writer import GgufOutput, complete_file, gguf_header
from infer_os.convert.tokenizer import read_vocabulary
from infer_os.convert.types import fitting_type, recipe_named, wanted_type
from infer_os.models.architectures import describe
from infer_os.models.catalog import find_model
from infer_os.models.network import Network, Role
from infer_os.models.weight_types import RECIPES, Recipe
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.quantize import needed_importance, quantize_rows

_PIECE = 64 << 20
_LAYER_KEYS = ("num_hidden_layers", "n_layer")


def recipe_of(network: Network, kind: str) -> Recipe:
    """The recipe of a ``--type``; of other types, one that gives them to the layers in turn."""
    if kind in RECIPES:
        return recipe_named(kind)
    turns = kind.split("+")
    matrices = [r.target for r in network.rules if r.layer is not None and len(r.shape) == 2]
    types = {name: turns[i % len(turns)] for i, name in enumerate(matrices)}
    return Recipe(kind, turns[0], 0, "q6_k", is_chosen=False, types=types)


def planned(network: Network, kind: str) -> ConversionPlan:
    """What ``convert`` would write for a checkpoint of this network."""
    recipe = recipe_of(network, kind)
    tied = all(rule.role is not Role.HEAD for rule in network.rules)
    tensors = []
    for rule in network.rules:
        wanted = wanted_type(recipe, rule, network.n_layer, tied_head=tied)
        fitted = ggml_type_named(fitting_type(wanted, rule.shape[-1]))
        tensors.append(PlannedTensor(rule, (), fitted, wanted))
    return ConversionPlan(tuple(tensors))


def write_random_gguf(name: str, kind: str, path: Path, seed: int = 1, *, layers: int = 0) -> None:
    """Write ``path``; ``name`` is a name of the catalog, ``layers`` 0 is as many as it has."""
    model = find_model(name)
    if model is None:
        raise SystemExit(f"{name}: not in the catalog")
    config = dict(model.config)
    for key in _LAYER_KEYS:
        if layers and key in config:
            config[key] = layers
    network = describe(config)
    plan = planned(network, kind)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), network.vocab_rows)
        vocabulary = read_vocabulary(Path(folder), model.config, network.vocab_rows)
    metadata = {f"{network.graph}.{key}": value for key, value in network.metadata.items()}
    # so that nobody takes its output, or a draft's acceptance on it, for a real figure
    metadata["inferos.weights.random"] = True
    header = gguf_header(network.graph, metadata, vocabulary, plan)
    random = np.random.default_rng(seed)
    rows: dict[tuple[str, int], np.ndarray] = {}
    with complete_file(path) as handle:
        output = GgufOutput(handle, header, plan)
        for tensor in plan.tensors:
            width = tensor.rule.shape[-1]
            key = tensor.type.name, width
            if key not in rows:
                values = random.standard_normal((max(1, (1 << 20) // width), width), np.float32)
                importance = needed_importance(None, tensor.type, width)
                quantized, _ = quantize_rows(
                    values * 0.02, tensor.type, n_threads=1, importance=importance
                )
                rows[key] = quantized.ravel()
            _repeat(output, tensor, rows[key])


def _repeat(output: GgufOutput, tensor: PlannedTensor, piece: np.ndarray) -> None:
    piece = np.tile(piece, max(1, _PIECE // piece.nbytes))
    for at in range(0, tensor.n_bytes, piece.nbytes):
        output.write(tensor, at, piece[: tensor.n_bytes - at])


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a name of the catalog")
    parser.add_argument("type", help="a type, or several joined by +")
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model has")
    arguments = parser.parse_args()
    write_random_gguf(arguments.name, arguments.type, arguments.output, layers=arguments.layers)


if __name__ == "__main__":
    main()
