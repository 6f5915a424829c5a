"""The declarations in Python against the C header: nothing is missing, nothing differs."""

from __future__ import annotations

import ast
import ctypes
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from infer_os.native import abi
from infer_os.native.quantize import KERNELS

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "native" / "src" / "inferos.h"
GGML_HEADER = Path(llama_cpp.__file__).parent.parent / "include" / "ggml.h"

SCALARS = {
    "void": None, "bool": ctypes.c_bool, "double": ctypes.c_double, "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64,
    "enum ggml_type": ctypes.c_int,
}  # fmt: skip
#: What C returns as an array in a struct, and numpy fills, is passed as an address.
ADDRESSES = {"float", "void"}


def without_comments(path: Path) -> str:
    return re.sub(r"//[^\n]*", "", path.read_text())


def ctype(text: str) -> Any:
    """What stands for a C type: ``const inferos_buffers * buffers`` is a pointer to that struct."""
    text = re.sub(r"\bconst\b", "", text).strip()
    if text.endswith("_callback_t"):
        return ctypes.c_void_p
    if not text.endswith("*"):
        return SCALARS[text]
    name = text[:-1].strip()
    if name == "char":
        return ctypes.c_char_p
    if hasattr(abi, name):
        return ctypes.POINTER(getattr(abi, name))
    known = name in SCALARS and name not in ADDRESSES
    return ctypes.POINTER(SCALARS[name]) if known else ctypes.c_void_p


def split_declarator(text: str) -> tuple[str, str]:
    """The type and the name of ``const char * name``; a callback or an enum is one word as well."""
    found = re.fullmatch(r"(.*[\s*])(\w+)", text.strip(), re.DOTALL)
    assert found, text
    return " ".join(found[1].split()), found[2]


def prototypes(path: Path, export: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for result, parameters in re.findall(
        rf"^\s*{export}\s+([^;()]+)\(([^()]*)\);", without_comments(path), re.MULTILINE
    ):
        kind, name = split_declarator(result)
        if export == "GGML_API" and name not in abi.GGML_FUNCTIONS:
            continue
        inside = [] if parameters.strip() in ("", "void") else parameters.split(",")
        found[name] = ctype(kind), tuple(ctype(split_declarator(one)[0]) for one in inside)
    return found


def structs() -> dict[str, list[tuple[str, Any]]]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, body in re.findall(r"struct (\w+) \{([^}]*)\};", without_comments(HEADER)):
        fields = [split_declarator(line) for line in body.split(";") if line.strip()]
        found[name] = [(field, ctype(kind)) for kind, field in fields]
    return found


def enumerators(name: str) -> dict[str, int]:
    (body,) = re.findall(rf"enum {name} \{{([^}}]*)\}};", without_comments(HEADER))
    return {key: int(value) for key, value in re.findall(r"INFEROS_(\w+)\s*=\s*(\d+)", body)}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def test_every_function_is_declared_as_in_the_header() -> None:
    found = prototypes(HEADER, "INFEROS_API")
    assert len(found) == HEADER.read_text().count("\nINFEROS_API ")
    assert not differences(abi.FUNCTIONS, found)


def test_the_functions_of_ggml_are_declared_as_in_its_header() -> None:
    assert not differences(abi.GGML_FUNCTIONS, prototypes(GGML_HEADER, "GGML_API"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("inferos_best_kernel(void)", "inferos_best_kernel(int32_t of)"),
        ("int32_t inferos_best_kernel(void)", "int64_t inferos_best_kernel(void)"),
        ("inferos_best_kernel(void)", "inferos_worst_kernel(void)"),
        ("uint64_t n_bytes, int32_t n_threads", "uint64_t n_bytes, int64_t n_threads"),
        ("const inferos_quantize_job * job", "const inferos_kv_part * job"),
        ("INFEROS_API int32_t inferos_best", "INFEROS_API bool inferos_new(void);\n"
         "INFEROS_API int32_t inferos_best"),
    ],
)  # fmt: skip
def test_a_changed_function_is_seen(tmp_path: Path, before: str, after: str) -> None:
    text = HEADER.read_text()
    assert before in text
    other = tmp_path / "inferos.h"
    other.write_text(text.replace(before, after, 1))
    assert differences(abi.FUNCTIONS, prototypes(other, "INFEROS_API"))


def test_every_struct_has_the_fields_of_the_header() -> None:
    ours = {
        name: [(field, addressed(kind)) for field, kind in value._fields_]
        for name, value in vars(abi).items()
        if isinstance(value, type) and issubclass(value, ctypes.Structure)
    }
    theirs = {
        name: [(field, addressed(kind)) for field, kind in fields]
        for name, fields in structs().items()
    }
    assert not differences(ours, theirs)


def addressed(kind: Any) -> Any:
    """Pointers to arrays may be declared as plain addresses."""
    return ctypes.c_void_p if isinstance(kind, type(ctypes.POINTER(ctypes.c_int))) else kind


def test_the_enumerators_are_those_of_the_header() -> None:
    assert {status.name: status.value for status in abi.Status} == enumerators("inferos_status")
    kernels = enumerators("inferos_kernel")
    assert kernels == {f"KERNEL_{name.upper()}": i for i, name in enumerate(KERNELS)}


def test_the_hash_is_that_of_the_header() -> None:
    wanted = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]
    assert wanted == abi.HEADER_HASH, f"native/abi.py is for another header: HEADER_HASH = {wanted}"


def test_types_are_declared_nowhere_else() -> None:
    for path in sorted(ROOT.glob("native/*.py")):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        assert path.name == "abi.py" or not names & {"argtypes", "restype"}, path
