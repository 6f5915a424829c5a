"""Write a checkpoint folder of a real model's geometry with random weights.

    python benchmarks/random_model.py gpt-j-6B OUT [--layers 8] [--dtype float16]

The config, the tensor names and shapes and the size of the vocabulary are the published ones; the
weights are random and the tokenizer is made up. For measuring conversion, memory and speed, where
the values do not matter.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.models.architectures import describe

#: Published settings of config.json.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "gpt-neox-20b": {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 6144, "num_hidden_layers": 44,
        "num_attention_heads": 64, "intermediate_size": 24576, "vocab_size": 50432,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048,
        "hidden_act": "gelu_fast", "use_parallel_residual": True, "layer_norm_eps": 1e-5,
    },
    "gpt-j-6B": {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"], "n_embd": 4096, "n_layer": 28, "n_head": 16,
        "n_positions": 2048, "rotary_dim": 64, "vocab_size": 50400, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
    },
    "bloom-7b1": {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"], "hidden_size": 4096, "n_layer": 30,
        "num_attention_heads": 32, "vocab_size": 250880, "layer_norm_epsilon": 1e-5,
    },
    "gpt2-large": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"], "n_embd": 1280, "n_layer": 36, "n_head": 20,
        "n_positions": 1024, "vocab_size": 50257, "activation_function": "gelu_new",
    },
    "pythia-1.4b": {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 8192, "vocab_size": 50304,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048,
        "hidden_act": "gelu", "use_parallel_residual": True, "layer_norm_eps": 1e-5,
    },
    "pythia-160m": {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 50304,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048,
        "hidden_act": "gelu", "use_parallel_residual": True, "layer_norm_eps": 1e-5,
    },
    "distilgpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"], "n_embd": 768, "n_layer": 6, "n_head": 12,
        "n_positions": 1024, "vocab_size": 50257, "activation_function": "gelu_new",
    },
}  # fmt: skip

_LAYER_KEYS = ("num_hidden_layers", "n_layer")
_POOL = 1 << 25


class RandomWeights:
    """Normal values drawn from a pool at random places: fast, and no two tensors are alike."""

    def __init__(self, seed: int, dtype: str) -> None:
        self._random = np.random.default_rng(seed)
        pool = self._random.standard_normal(_POOL, np.float32) * 0.02
        self._pool = pool.astype(dtype)

    def write(self, shape: tuple[int, ...], is_norm_weight: bool, file: Any) -> None:
        """Append a tensor to an open file, a few megabytes at a time."""
        left = math.prod(shape)
        while left:
            start = int(self._random.integers(0, _POOL - 1))
            values: NDArray[Any] = self._pool[start : start + min(left, 1 << 22)]
            if is_norm_weight:
                values = values + self._pool.dtype.type(1)
            values.tofile(file)
            left -= len(values)


def make_folder(
    name: str, folder: Path, *, layers: int = 0, dtype: str = "float16", seed: int = 1,
    shard_bytes: int = 1 << 30,
) -> None:  # fmt: skip
    """Write config.json, sharded safetensors and tokenizer.json into ``folder``.

    Args:
        name: a key of :data:`GEOMETRIES`.
        folder: where to; created.
        layers: fewer layers than the model has; 0 for all.
        dtype: float16 or float32.
        seed: of the weights.
        shard_bytes: about where a shard ends.
    """
    config = dict(GEOMETRIES[name])
    for key in _LAYER_KEYS:
        if layers and key in config:
            config[key] = layers
    config["torch_dtype"] = dtype
    network = describe(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, network.vocab_rows)
    tensors = {part.source: part.shape for rule in network.rules for part in rule.parts}
    if any(source.startswith("lm_head") for source in tensors):
        # a checkpoint with a head of its own has everything else under the prefix
        tensors = {
            source if source.startswith("lm_head") else network.prefixes[0] + source: shape
            for source, shape in tensors.items()
        }
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = np.dtype(dtype).itemsize
    for source, shape in tensors.items():
        held = sum(math.prod(s) for s in shards[-1].values()) * size
        if shards[-1] and held + math.prod(shape) * size > shard_bytes:
            shards.append({})
        shards[-1][source] = shape
    weights = RandomWeights(seed, dtype)
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard, weights, dtype)
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(
    path: Path, shard: dict[str, tuple[int, ...]], weights: RandomWeights, dtype: str
) -> None:
    at, header = 0, {}
    for source, shape in shard.items():
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        kind = {"float16": "F16", "float32": "F32"}[dtype]
        header[source] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for source, shape in shard.items():
            weights.write(shape, len(shape) == 1 and source.endswith("weight"), file)


def _byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level BPE vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    symbols = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [symbols[b] for b in range(256)]


def write_tokenizer(folder: Path, rows: int) -> None:
    """A byte-level BPE with as many tokens as the embedding has rows, less a few for padding."""
    symbols = _byte_symbols()
    letters = symbols[ord("a") : ord("z") + 1]
    tokens, merges = ["<|endoftext|>", *symbols], []
    words = list(letters)
    known = set(tokens)
    for word in words:
        for letter in letters:
            if len(tokens) >= rows - 16:
                break
            if word + letter not in known:
                known.add(word + letter)
                tokens.append(word + letter)
                words.append(word + letter)
                merges.append(f"{word} {letter}")
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": 0, "content": "<|endoftext|>", "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False},
        ],
        "pre_tokenizer": pre, "post_processor": None, "decoder": pre,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "byte_fallback": False, "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=GEOMETRIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model has")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    make_folder(
        arguments.name, arguments.folder, layers=arguments.layers, dtype=arguments.dtype,
        seed=arguments.seed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
