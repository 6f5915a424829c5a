"""The architectures that can be converted, and which of them a config asks for.

Goes in: a checkpoint's ``config.json`` as a mapping. Comes out: a :class:`~.network.Network`, a
plain record of the llama.cpp graph that runs it, its metadata and its tensor rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import bloom, codegen, gpt2, gpt_bigcode, gpt_neo, gpt_neox, gptj, mpt, opt, xglm
from .network import ConfigError, Network


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture that can be converted.

    Args:
        model_type: Hugging Face's, in config.json.
        name: Hugging Face's class (``architectures`` in config.json).
        bare: its class without a head. It serves where the head is the embedding, or where the
            file has a head all the same.
        family: what people call it.
        describe: makes its network of a config.
        also: other names of the class.
    """

    model_type: str
    name: str
    bare: str
    family: str
    describe: Callable[[Mapping[str, Any]], Network]
    also: tuple[str, ...] = ()


#: The families as pages list them.
ARCHITECTURES = (
    Architecture("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXModel", "GPT-NeoX", gpt_neox.describe),
    Architecture("gptj", "GPTJForCausalLM", "GPTJModel", "GPT-J", gptj.describe),
    Architecture("bloom", "BloomForCausalLM", "BloomModel", "BLOOM", bloom.describe),
    Architecture("gpt2", "GPT2LMHeadModel", "GPT2Model", "GPT-2", gpt2.describe),
    Architecture("codegen", "CodeGenForCausalLM", "CodeGenModel", "CodeGen", codegen.describe),
    Architecture(
        "gpt_bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeModel", "GPT-BigCode",
        gpt_bigcode.describe,
    ),
    Architecture("opt", "OPTForCausalLM", "OPTModel", "OPT", opt.describe),
    Architecture("gpt_neo", "GPTNeoForCausalLM", "GPTNeoModel", "GPT-Neo", gpt_neo.describe),
    Architecture("xglm", "XGLMForCausalLM", "XGLMModel", "XGLM", xglm.describe),
    Architecture(
        "mpt", "MptForCausalLM", "MptModel", "MPT", mpt.describe, also=("MPTForCausalLM",)
    ),
)  # fmt: skip
_BY_CLASS = {name: row for row in ARCHITECTURES for name in (row.name, row.bare, *row.also)}
#: For configs that name no class.
_BY_TYPE = {row.model_type: row for row in ARCHITECTURES}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.

    Raises:
        ConfigError: the config names no supported architecture; lists those that are.
    """
    named = config.get("architectures")
    names = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
    for name in names:
        if name in _BY_CLASS:
            return _BY_CLASS[name]
    model_type = config.get("model_type")
    if not names and isinstance(model_type, str) and model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    found = ", ".join(names) or (f"model_type {model_type!r}" if model_type else "none")
    raise ConfigError(
        f"unsupported architecture: {found}; supported are {', '.join(sorted(_BY_CLASS))}"
    )


def describe(config: Mapping[str, Any]) -> Network:
    """Describe the network of a checkpoint's config.

    Raises:
        ConfigError: an unsupported architecture, or a setting that is missing or out of bounds.
    """
    return architecture_of(config).describe(config)
