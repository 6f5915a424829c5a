"""What the networks look like: per architecture, the settings it reads and the tensors it needs.

Goes in: a checkpoint's ``config.json`` as a mapping. Comes out: a :class:`~.network.Network`, a
plain record of the llama.cpp graph that runs it, its metadata and its tensor rules. No file is
read here and nothing of the other rooms is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import bloom, gpt2, gpt_neox, gptj
from .network import ConfigError, Network

#: Hugging Face's class name (``architectures`` in config.json) to the function that describes it. A
#: bare model serves where the head is the embedding, or where the file has a head all the same.
ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], Network]] = {
    "BloomForCausalLM": bloom.describe,
    "BloomModel": bloom.describe,
    "GPT2LMHeadModel": gpt2.describe,
    "GPT2Model": gpt2.describe,
    "GPTJForCausalLM": gptj.describe,
    "GPTJModel": gptj.describe,
    "GPTNeoXForCausalLM": gpt_neox.describe,
    "GPTNeoXModel": gpt_neox.describe,
}

#: Hugging Face's ``model_type`` to the class, for configs that name no architecture.
MODEL_TYPES: dict[str, str] = {
    "bloom": "BloomForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gptj": "GPTJForCausalLM",
}


def architecture_of(config: Mapping[str, Any]) -> str:
    """Name the supported architecture of a config.

    Raises:
        ConfigError: the config names none, or one that is not supported; lists the supported.
    """
    named = config.get("architectures")
    names = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
    for name in names:
        if name in ARCHITECTURES:
            return name
    model_type = config.get("model_type")
    if not names and isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    found = ", ".join(names) or (f"model_type {model_type!r}" if model_type else "none")
    raise ConfigError(
        f"unsupported architecture: {found}; supported are {', '.join(sorted(ARCHITECTURES))}"
    )


def describe(config: Mapping[str, Any]) -> Network:
    """Describe the network of a checkpoint's config.

    Raises:
        ConfigError: an unsupported architecture, or a setting that is missing or out of bounds.
    """
    return ARCHITECTURES[architecture_of(config)](config)
