"""Adapters for the tests: the stored ones, random ones, and their files for a loaded model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import gguf
import numpy as np
from helpers import REFERENCES, TESTS
from random_adapter import random_adapter as random_adapter

from infer_os.convert.adapter_file import write_adapter
from infer_os.convert.source import AdapterSource
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.settings import AdapterFile
from infer_os.store.reporter import Reporter
from infer_os.store.runtime_adapters import adapter_files

#: Every adapter that PEFT's merged logits are stored for.
ADAPTERS = sorted(path.parent for path in (TESTS / "reference/adapters").glob("*/logits.npy"))
_BASES = {path.name: path for path in REFERENCES}
SILENT = Reporter(lambda text: None, lambda label: nullcontext())


def base_of(adapter: Path) -> Path:
    """The checkpoint that a stored adapter is for."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return _BASES[config["base_model_name_or_path"].rpartition("/")[2]]


def loadable(model: Path, *texts: str) -> tuple[AdapterFile, ...]:
    """What the settings of an engine take for these texts of ``--adapter``."""
    return adapter_files(texts, model, SILENT)


def adapter_file(adapter: Path, model: Path, target: Path) -> Path:
    """The file of an adapter for a model."""
    source = AdapterSource(adapter, 1.0, str(adapter), "--adapter")
    write_adapter(source, read_gguf_header(model), target)
    return target


def llama_file(adapter: Path, model: Path, target: Path, kind: str = "f32") -> Path:
    """The same as llama.cpp's own converter writes it: rank as it is, alpha in the metadata.

    Only for ranks that all matrices have in common.
    """
    header = read_gguf_header(adapter_file(adapter, model, target.with_suffix(".own")))
    reader = gguf.GGUFReader(header.path)
    writer = gguf.GGUFWriter(target, header.architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    alpha = np.float32(settings["lora_alpha"])
    writer.add_float32("adapter.lora.alpha", float(alpha))
    for tensor in reader.tensors:
        values = tensor.data
        axis = 0 if tensor.name.endswith("a") else 1
        rank = int(np.flatnonzero(values.any(axis=1 - axis))[-1]) + 1
        values = values[:rank] if axis == 0 else values[:, :rank] * (rank / alpha)
        writer.add_tensor(tensor.name, values.astype({"f32": "<f4", "f16": "<f2"}[kind]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
