"""The networks of the bundled models: their sizes, their config.json, and what they write.

In: a :class:`Shape`, and weights if there are any. Out: a float32 GPT-NeoX of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from train_data import VOCAB
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

CONTEXT = 2048
SHORT = 512


@dataclass(frozen=True)
class Shape:
    """The sizes of one model and the settings of its training."""

    name: str
    hidden: int
    heads: int
    layers: int
    inner: int
    peak_lr: float
    dropout: float
    vocab: int = VOCAB


TARGET = Shape("austen-6m", 256, 4, 6, 1024, peak_lr=1.2e-3, dropout=0.05)
DRAFT = Shape("austen-draft", 128, 2, 1, 512, peak_lr=4e-3, dropout=0.0)
BED = Shape("library-34m", 512, 8, 8, 2048, peak_lr=8e-4, dropout=0.0, vocab=8192)


def config_json(shape: Shape) -> dict[str, Any]:
    """The config.json of a model, with the rotary keys under their classic names."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu_fast",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "attention_bias": True,
        "layer_norm_eps": 1e-05,
        "initializer_range": 0.02,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def build(shape: Shape, state: dict[str, torch.Tensor] | None = None) -> GPTNeoXForCausalLM:
    """A float32 model, fresh or with the given weights."""
    config = GPTNeoXConfig(**config_json(shape))
    config.dtype = torch.float32
    # The same tanh GELU as gelu_fast, in one kernel instead of eight.
    config.hidden_act = "gelu_pytorch_tanh"
    config.hidden_dropout = shape.dropout
    config.use_cache = False
    torch.manual_seed(1811)
    model = GPTNeoXForCausalLM(config).float()
    if state is None:
        # Smaller output projections keep the residual stream from growing with depth.
        for name, weight in model.named_parameters():
            if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
                weight.data.mul_(1 / math.sqrt(2 * shape.layers))
    else:
        model.load_state_dict(state)
    return model


def rounded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as float16 stores them, in float32."""
    return {name: weight.half().float() for name, weight in state.items()}


def logits(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The scores of every next token, computed in bfloat16 where autocast sees fit."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=rows).logits  # (batch, positions, VOCAB)


@torch.inference_mode()
def generate(
    model: GPTNeoXForCausalLM, prompts: torch.Tensor, count: int, temperature: float, seed: int
) -> torch.Tensor:
    """Continue every prompt by ``count`` tokens; temperature 0 is greedy."""
    random = torch.Generator().manual_seed(seed)
    out = [prompts]  # (batch, prompt)
    cache = None
    step = prompts
    for _ in range(count):
        result = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        scores = result.logits[:, -1].float()  # (batch, VOCAB)
        if temperature == 0:
            step = scores.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial((scores / temperature).softmax(-1), 1, generator=random)
        out.append(step)
    return torch.cat(out, dim=1)  # (batch, prompt + count)
