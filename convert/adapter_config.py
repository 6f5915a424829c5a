"""The settings of a LoRA adapter, as PEFT writes them.

Goes in: an ``adapter_config.json``, which is a stranger's. Comes out: what the product of a
module's matrices is multiplied by, as in https://github.com/huggingface/peft,
src/peft/tuners/lora/layer.py. An adapter that does more than that is refused by the setting that
says so.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FileFormatError, UnsupportedError
from .module_patterns import ModulePatterns
from .plain_file import read_json

#: The file's name.
ADAPTER_CONFIG = "adapter_config.json"
# others change the base weights too, so that adding the product is not enough
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Settings that say how an adapter was trained, or that are read here.
_HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
})  # fmt: skip
_LARGEST_NUMBER = 1e9


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What counts of an adapter's settings. ``made_for`` names the model, if they say it."""

    path: Path
    made_for: str
    ranks: _ByModule
    alphas: _ByModule
    by_root: bool

    def factor(self, module: str, rank: int) -> float:
        """The factor of a module whose matrices have this rank.

        ``alpha / r``, or over ``sqrt(r)`` for rsLoRA.

        Raises:
            FileFormatError: the settings have another rank.
        """
        stated = self.ranks.of(module)
        if stated != rank:
            raise FileFormatError(
                f"{self.path}: {module} has matrices of rank {rank}, but {ADAPTER_CONFIG} says "
                f"{stated:g}"
            )
        return self.alphas.of(module) / (math.sqrt(rank) if self.by_root else rank)


class _ByModule:
    """A number of each module: that of the first pattern that its name matches, or the usual."""

    def __init__(self, path: Path, config: Mapping[str, Any], usual: str, table: str) -> None:
        """Read both settings.

        Raises:
            FileFormatError: not a table, or a number that cannot be.
            UnsupportedError: a pattern that is not understood.
        """
        self._numbers = config.get(table) or {}
        if not isinstance(self._numbers, dict):
            raise FileFormatError(f"{path}: {table} is not a table")
        for pattern, value in self._numbers.items():
            _check_number(path, f"{table} of {reprlib.repr(pattern)}", value)
        try:
            self._patterns = ModulePatterns(tuple(self._numbers))
        except ValueError as error:
            raise UnsupportedError(f"{path}: {table}: {error}") from None
        _check_number(path, usual, config.get(usual))
        self._usual = config[usual]

    def of(self, module: str) -> float:
        found = self._patterns.first(module)
        return float(self._usual if found is None else self._numbers[found])


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read an ``adapter_config.json``.

    Raises:
        FileFormatError: a file that is malformed.
        UnsupportedError: an adapter that does more than LoRA.
    """
    config = read_json(path) or {}
    _refuse_more(path, config)
    by_root = config.get("use_rslora") or False
    if not isinstance(by_root, bool):
        raise FileFormatError(
            f"{path}: use_rslora is {reprlib.repr(by_root)}; expected true or false"
        )
    made_for = config.get("base_model_name_or_path")
    return AdapterConfig(
        path,
        made_for if isinstance(made_for, str) else "",
        _ByModule(path, config, "r", "rank_pattern"),
        _ByModule(path, config, "lora_alpha", "alpha_pattern"),
        by_root,
    )


def _refuse_more(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is more than LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(
            f"{path}: a {str(kind)[:40]} adapter; only LORA can be added to the weights"
        )
    if config.get("use_dora"):
        raise UnsupportedError(f"{path}: use_dora: DoRA is not supported, only plain LoRA")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise UnsupportedError(
            f"{path}: init_lora_weights is {reprlib.repr(start)}, which changed the model's own "
            "weights too; save the adapter as plain LoRA (PEFT's "
            "path_initial_model_for_weight_conversion)"
        )
    bias = config.get("bias", "none")
    if bias != "none":
        raise UnsupportedError(f"{path}: bias is {reprlib.repr(bias)}; only 'none' is supported")
    for key, value in config.items():
        if value and key not in _HARMLESS and key not in ("bias", "loftq_config"):
            raise UnsupportedError(
                f"{path}: {reprlib.repr(key)[1:-1]} is {reprlib.repr(value)}, which is not "
                "supported"
            )


def _check_number(path: Path, what: str, value: Any) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not 0 < value <= _LARGEST_NUMBER:
        raise FileFormatError(
            f"{path}: {what} is {reprlib.repr(value)}; expected a positive number"
        )
