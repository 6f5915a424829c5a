"""The seven models of the guide as folders of the hub: published keys and files, tiny weights.

Keys of ``config.json`` and the sets of files are those of the repositories; sizes are small, and
the weights random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers import TESTS, Tensors
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch_writer import write_torch

from infer_os.models.architectures import describe

_TOKENIZER = json.loads((TESTS / "reference" / "gpt2" / "tokenizer.json").read_text())
#: Tokens of the tokenizer without those that only a tokenizer.json can add.
_N_TOKENS = len(_TOKENIZER["model"]["vocab"])

_NEOX: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 64,
    "initializer_range": 0.02, "intermediate_size": 256, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 2,
    "num_hidden_layers": 2, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.19.0.dev0",
    "use_cache": True, "vocab_size": 304,
}  # fmt: skip
_GPTJ: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0,
    "bos_token_id": 0, "embd_pdrop": 0.0, "eos_token_id": 0, "gradient_checkpointing": False,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 64,
    "n_head": 2, "n_inner": None, "n_layer": 2, "n_positions": 2048, "resid_pdrop": 0.0,
    "rotary": True, "rotary_dim": 16, "scale_attn_weights": True, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {
        "text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}
    },
    "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0", "use_cache": True, "vocab_size": 304,
}  # fmt: skip
_BLOOM: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True,
    "bos_token_id": 0, "eos_token_id": 0, "hidden_dropout": 0.0, "hidden_size": 64,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True,
    "model_type": "bloom", "n_head": 2, "n_inner": None, "n_layer": 2, "offset_alibi": 100,
    "pad_token_id": 0, "pretraining_tp": 1, "skip_bias_add": True, "skip_bias_add_qkv": False,
    "slow_but_exact": False, "transformers_version": "4.20.0", "unk_token_id": 0,
    "use_cache": True, "vocab_size": 304,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 64, "n_head": 2,
    "n_layer": 2, "n_positions": 1024, "n_special": 0, "predict_special_tokens": True,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 300,
}  # fmt: skip
_DISTIL = {**_GPT2, "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
_DIALOGPT = {
    **{key: value for key, value in _GPT2.items() if key != "n_special"},
    "task_specific_params": {"conversational": {"max_length": 1000}}, "vocab_size": _N_TOKENS,
}  # fmt: skip

#: A buffer of one value, as torch stored it.
_MASKED = np.full((), -1e4, np.float16)

Files = Callable[[Path, Tensors], None]


@dataclass(frozen=True)
class Published:
    """A repository: ``weights`` writes its files, ``prefixed`` names start with transformer."""

    id: str
    config: Mapping[str, Any]
    weights: Files
    dtype: str
    tokenizer: tuple[str, ...]
    revision: str = "main"
    prefixed: bool = False
    buffers: Callable[[int], Tensors] = lambda layer: {}

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Make the folder."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))
        for name in self.tokenizer:
            _TOKENIZER_FILES[name](folder / name)
        self.weights(folder, self._tensors(seed))
        (folder / "README.md").write_text("# A model card\n")
        # what other frameworks read, and nobody should download
        (folder / "tf_model.h5").write_bytes(b"never read" * 1000)
        return folder

    def _tensors(self, seed: int) -> Tensors:
        random = np.random.default_rng(seed)
        tensors: Tensors = {}
        for rule in describe(dict(self.config)).rules:
            for part in rule.parts:
                values: NDArray[Any] = random.standard_normal(part.shape) * 0.05
                if len(part.shape) == 1:
                    values = values + ("weight" in part.source)
                tensors[self._spelled(part.source)] = values.astype(self.dtype)
        for layer in range(2):
            tensors |= {self._spelled(name): t for name, t in self.buffers(layer).items()}
        return tensors

    def _spelled(self, name: str) -> str:
        bare = name.removeprefix("transformer.")
        outside = bare.startswith(("lm_head", "embed_out", "gpt_neox."))
        return f"transformer.{bare}" if self.prefixed and not outside else bare


def _masks(layer: int) -> Tensors:
    triangle = np.tril(np.ones((1, 1, 64, 64), np.float32))
    return {f"h.{layer}.attn.bias": triangle}


def _byte_masks(layer: int) -> Tensors:
    triangle = np.tril(np.ones((1, 1, 64, 64), bool))
    return {
        f"h.{layer}.attn.bias": triangle, f"h.{layer}.attn.masked_bias": _MASKED,
    }  # fmt: skip


def _rotary(layer: int) -> Tensors:
    return {
        f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq": np.ones(4, np.float16),
        f"gpt_neox.layers.{layer}.attention.masked_bias": _MASKED,
    }


def _one_safetensors(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    # the hub has both
    (folder / "pytorch_model.bin").write_bytes(b"never read" * 1000)


def _shards(count: int) -> Files:
    def write(folder: Path, tensors: Tensors) -> None:
        names, weight_map = list(tensors), {}
        for i in range(count):
            file = f"model-{i + 1:05}-of-{count:05}.safetensors"
            part = {name: tensors[name] for name in names[i::count]}
            save_file(part, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def _bin(*, legacy: bool) -> Files:
    def write(folder: Path, tensors: Tensors) -> None:
        write_torch(folder / "pytorch_model.bin", tensors, legacy=legacy)

    return write


def _legacy_bin_with_head(folder: Path, tensors: Tensors) -> None:
    _bin(legacy=True)(folder, {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]})


def _vocab(path: Path) -> None:
    path.write_text(json.dumps(_TOKENIZER["model"]["vocab"]))


def _merges(path: Path) -> None:
    pairs = (m if isinstance(m, str) else " ".join(m) for m in _TOKENIZER["model"]["merges"])
    path.write_text("\n".join(["#version: 0.2", *pairs, ""]))


_TOKENIZER_FILES: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": lambda path: path.write_text(json.dumps(_TOKENIZER)),
    "tokenizer_config.json": lambda path: path.write_text('{"model_max_length": 1024}'),
    "special_tokens_map.json": lambda path: path.write_text(
        json.dumps(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))
    ),
    "vocab.json": _vocab,
    "merges.txt": _merges,
}
_ALL = tuple(_TOKENIZER_FILES)
_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_GPT2_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

PUBLISHED = (
    Published("EleutherAI/gpt-neox-20b", _NEOX, _shards(4), "float16", _ALL, buffers=_rotary),
    Published(
        "EleutherAI/gpt-j-6B", _GPTJ, _bin(legacy=False), "float16", _ALL, "float16",
        prefixed=True, buffers=_byte_masks,
    ),
    Published("bigscience/bloom-7b1", _BLOOM, _shards(2), "float16", _JSON),
    Published(
        "microsoft/DialoGPT-large", _DIALOGPT, _legacy_bin_with_head, "float16",
        ("vocab.json", "merges.txt", "tokenizer_config.json"), prefixed=True, buffers=_byte_masks,
    ),
    *(
        Published(name, config, _one_safetensors, "float32", _GPT2_FILES, buffers=_masks)
        for name, config in (
            ("openai-community/gpt2-large", _GPT2), ("openai-community/gpt2-medium", _GPT2),
            ("distilbert/distilgpt2", _DISTIL),
        )
    ),
)  # fmt: skip


def serve(repositories: dict[str, dict[str, Path]], place: Path, *names: str) -> None:
    """Put published models (all, or those of ``names``) on a server of the tests."""
    for model in PUBLISHED:
        short = model.id.rpartition("/")[2]
        if not names or short in names:
            folder = model.write(place / short)
            repositories[model.id] = {model.revision: folder}
