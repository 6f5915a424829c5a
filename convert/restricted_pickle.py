"""Read a state dict's pickle as plain data: nothing in it is ever imported or called.

In: the bytes of one pickle. Out: dicts, lists, tuples, strings and numbers, and a record for each
of the few names that a state dict needs. Every other name, and every opcode that could make an
object of one, is refused.

Opcodes: CPython, Lib/pickletools.py. What torch writes: torch/serialization.py
(`persistent_id` of `_save` and `_legacy_save`) and torch/_utils.py (`_rebuild_*`).
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any, NoReturn

from .errors import FileFormatError

#: What a user can do about a file that is refused.
ADVICE = "convert the checkpoint to safetensors with its authors' tools"

# Bounds, each far above any real state dict (about 36 opcodes, 13 memo entries and 200 bytes for
# a tensor). Work and memory grow linearly with the opcodes, so these bound both.
LARGEST_PICKLE = 64 << 20
_MOST_STEPS = 4_000_000
_MOST_MEMO = 2_000_000
_MOST_TENSORS = 100_000
_DEEPEST_STACK = 1_000_000
_DEEPEST_MARKS = 1_000
_LONGEST_NAME = 256

_STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}  # fmt: skip

_DTYPES = frozenset({
    "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16", "torch.int64",
    "torch.int32", "torch.int16", "torch.int8", "torch.uint8", "torch.bool",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed name, as written in the pickle: `module.name`."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """A storage of `numel` elements, and the part of it that is used (in elements)."""

    key: str
    dtype: str
    numel: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as the pickle describes it, unchecked: numbers in elements, of any size and sign."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unpickled:
    """A pickle's value, where it ends in the data, and every storage that it names."""

    value: Any
    end: int
    storages: dict[str, StorageRecord]


class _Ordered(dict[str, Any]):
    """What collections.OrderedDict makes: the one object whose attributes a pickle may set."""

    __slots__ = ()


def read_pickle(where: str, data: bytes | mmap.mmap, start: int = 0) -> Unpickled:
    """Read the pickle that begins at `start`; `where` (file, part) begins every message.

    Dictionary entries whose key is not a string are left out: they cannot name tensors.

    Raises:
        FileFormatError: malformed, truncated, out of bounds, or not just what a state dict needs.
    """
    machine = _Machine(where, data, start)
    value = machine.run()
    return Unpickled(value, machine.at, machine.storages)


class _Machine:
    def __init__(self, where: str, data: bytes | mmap.mmap, start: int) -> None:
        self.where = where
        self.data = data
        self.at = start
        self.end = min(len(data), start + LARGEST_PICKLE)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRecord] = {}
        self.n_steps = 0
        self.n_tensors = 0

    def run(self) -> Any:
        """Execute up to STOP; the value on top of the stack."""
        while True:
            self.spend(1)
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            if code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in _NUMBERS:
                number = _NUMBERS[code]
                self.stack.append(number.unpack(self.take(number.size))[0])
            elif code in _COUNTED:
                self.push_counted(*_COUNTED[code])
            elif code in _HANDLERS:
                _HANDLERS[code](self)
            else:
                self.refuse(f"opcode {_NAMES.get(code, hex(code))} is not allowed")
            if len(self.stack) > _DEEPEST_STACK:
                self.refuse(f"more than {_DEEPEST_STACK} values on the stack")

    def refuse(self, problem: str) -> NoReturn:
        raise FileFormatError(f"{self.where}: {problem} (at byte {self.at}); {ADVICE}")

    def spend(self, steps: int) -> None:
        self.n_steps += steps
        if self.n_steps > _MOST_STEPS:
            self.refuse(f"more than {_MOST_STEPS} steps: not the pickle of a state dict")

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            if self.end < len(self.data):
                self.refuse(f"longer than {LARGEST_PICKLE >> 20} MiB: not that of a state dict")
            raise FileFormatError(
                f"{self.where}: the pickle breaks off at byte {self.end}: the file is truncated "
                "or damaged; download it again"
            )
        raw = self.data[self.at : self.at + count]
        self.at += count
        return raw

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.refuse("malformed: an opcode finds nothing on the stack")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.refuse("malformed: an opcode finds no mark on the stack")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("malformed: a string is not UTF-8")

    # strings, numbers, the memo

    def push_counted(self, length: Struct, decode: Callable[[_Machine, bytes], Any]) -> None:
        (count,) = length.unpack(self.take(length.size))
        self.stack.append(decode(self, self.take(count)))

    def decode_long(self, raw: bytes) -> int:
        return int.from_bytes(raw, "little", signed=True)

    def decode_bytes(self, raw: bytes) -> bytes:
        return raw

    def skip_protocol(self) -> None:
        self.take(1)

    def skip_frame(self) -> None:
        self.take(8)

    def put(self, index: int) -> None:
        if index >= _MOST_MEMO:
            self.refuse(f"memo entry {index}, of {_MOST_MEMO} allowed")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.refuse(f"malformed: memo entry {index} was never stored")
        self.stack.append(self.memo[index])

    # containers

    def mark(self) -> None:
        if len(self.marks) >= _DEEPEST_MARKS:
            self.refuse(f"more than {_DEEPEST_MARKS} marks on the stack")
        self.marks.append(len(self.stack))

    def make_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.stack.append(tuple(values[::-1]))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            self.refuse(f"appends to {_kind(target)}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, _Ordered):
            self.refuse(f"sets items of {_kind(target)}")
        if len(values) % 2:
            self.refuse("malformed: a dictionary key without a value")
        # Other keys are left out: to hash a tuple of shared tuples takes exponential time, and
        # integers can be chosen to collide.
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is str:
                target[key] = value

    # names and what may be made from them

    def read_global(self) -> None:
        names = []
        for _ in range(2):
            newline = self.data.find(b"\n", self.at, min(self.at + _LONGEST_NAME, self.end))
            if newline < 0:
                self.refuse(f"malformed: a name that does not end within {_LONGEST_NAME} bytes")
            names.append(self.text(self.take(newline - self.at)))
            self.take(1)
        self.push_global(*names)

    def push_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            self.refuse("malformed: a name that is not a string")
        full = f"{module}.{name}"
        if full not in _STORAGES and full not in _DTYPES and full not in _CALLS:
            self.refuse(f"it wants {full[:_LONGEST_NAME]!r}, which no state dict needs")
        self.stack.append(Global(full))

    def pop_global_names(self) -> None:
        name = self.pop()
        self.push_global(self.pop(), name)

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if type(function) is not Global or function.name not in _CALLS:
            self.refuse(f"it calls {_kind(function)}")
        if type(args) is not tuple:
            self.refuse(f"it calls {function.name} with {_kind(args)} for arguments")
        self.stack.append(_CALLS[function.name](self, args))

    def build(self) -> None:
        # nn.Module.state_dict() sets `_metadata` on its OrderedDict: not needed, not kept
        state, target = self.pop(), self.top()
        if type(target) is not _Ordered or type(state) is not dict:
            self.refuse(f"it sets the state of {_kind(target)}")

    def call_ordered_dict(self, args: tuple[Any, ...]) -> _Ordered:
        made = _Ordered()
        if not args:
            return made
        # Python 2 wrote the items as one argument: a list of [key, value]
        if len(args) != 1 or type(args[0]) is not list:
            self.refuse("malformed: the arguments of collections.OrderedDict")
        self.spend(len(args[0]))
        for pair in args[0]:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                self.refuse("malformed: an item of collections.OrderedDict")
            if type(pair[0]) is str:
                made[pair[0]] = pair[1]
        return made

    def call_size(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(args) != 1 or type(args[0]) is not tuple:
            self.refuse("malformed: the arguments of torch.Size")
        return args[0]

    def call_device(self, args: tuple[Any, ...]) -> Global:
        return Global("torch.device")

    def call_tensor(self, args: tuple[Any, ...]) -> TensorRecord:
        return self.make_tensor("torch._utils._rebuild_tensor", args, (4,))

    def call_tensor_v2(self, args: tuple[Any, ...]) -> TensorRecord:
        tensor = self.make_tensor("torch._utils._rebuild_tensor_v2", args, (6, 7))
        # the seventh argument is written only where a bit is set (torch._utils.get_tensor_metadata)
        if len(args) == 7 and args[6] is not None and args[6] != {}:
            self.refuse("a tensor is stored negated or conjugated")
        return tensor

    def call_parameter(self, args: tuple[Any, ...]) -> TensorRecord:
        if len(args) not in (3, 4) or type(args[0]) is not TensorRecord:
            self.refuse("malformed: the arguments of torch._utils._rebuild_parameter")
        return args[0]

    def make_tensor(
        self, call: str, args: tuple[Any, ...], counts: tuple[int, ...]
    ) -> TensorRecord:
        self.n_tensors += 1
        if self.n_tensors > _MOST_TENSORS:
            self.refuse(f"more than {_MOST_TENSORS} tensors")
        if len(args) not in counts or type(args[0]) is not StorageRecord:
            self.refuse(f"malformed: the arguments of {call}")
        storage, offset, shape, stride = args[:4]
        if type(offset) is not int or type(shape) is not tuple or type(stride) is not tuple:
            self.refuse(f"malformed: the arguments of {call}")
        return TensorRecord(storage, offset, shape, stride)

    def load_storage(self) -> None:
        saved = self.pop()
        if type(saved) is not tuple or len(saved) not in (5, 6) or saved[0] != "storage":
            self.refuse("it holds something other than tensors (a whole module, say)")
        _, kind, key, _, numel = saved[:5]
        if type(kind) is not Global or kind.name not in _STORAGES:
            self.refuse(f"a storage is of the type {_kind(kind)}")
        if type(key) is not str or type(numel) is not int or numel < 0:
            self.refuse("malformed: the key or the size of a storage")
        first, count = self.read_view(saved[5], numel) if len(saved) == 6 else (0, numel)
        root = StorageRecord(key, _STORAGES[kind.name], numel, 0, numel)
        if self.storages.setdefault(key, root) != root:
            self.refuse(f"storage {key[:_LONGEST_NAME]!r} is described twice, differently")
        self.stack.append(StorageRecord(key, root.dtype, numel, first, count))

    def read_view(self, view: Any, numel: int) -> tuple[int, int]:
        if view is None:
            return 0, numel
        if type(view) is not tuple or len(view) != 3:
            self.refuse("malformed: the view of a storage")
        _, first, count = view
        if type(first) is not int or type(count) is not int or first < 0 or count < 0:
            self.refuse("malformed: the view of a storage")
        if first + count > numel:
            self.refuse("the view of a storage ends outside it")
        return first, count


def _kind(value: Any) -> str:
    return value.name if type(value) is Global else f"a value of type {type(value).__name__}"


_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_U8, _U16, _I32, _U32, _U64, _F64 = map(Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))
_STOP = ord(".")
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_NUMBERS = {ord("J"): _I32, ord("K"): _U8, ord("M"): _U16, ord("G"): _F64}
_COUNTED: dict[int, tuple[Struct, Callable[[_Machine, bytes], Any]]] = {
    ord("U"): (_U8, _Machine.text),  # SHORT_BINSTRING, as Python 2 wrote it
    ord("T"): (_U32, _Machine.text),  # BINSTRING; a negative length reads as too large
    ord("X"): (_U32, _Machine.text),  # BINUNICODE
    0x8C: (_U8, _Machine.text),  # SHORT_BINUNICODE
    0x8D: (_U64, _Machine.text),  # BINUNICODE8
    ord("C"): (_U8, _Machine.decode_bytes),  # SHORT_BINBYTES
    ord("B"): (_U32, _Machine.decode_bytes),  # BINBYTES
    0x8A: (_U8, _Machine.decode_long),  # LONG1
}
_HANDLERS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.skip_protocol,
    0x95: _Machine.skip_frame,
    ord("q"): lambda m: m.put(m.take(1)[0]),
    ord("r"): lambda m: m.put(_U32.unpack(m.take(4))[0]),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.take(1)[0]),
    ord("j"): lambda m: m.get(_U32.unpack(m.take(4))[0]),
    ord("("): _Machine.mark,
    ord("t"): lambda m: m.stack.append(tuple(m.pop_to_mark())),
    0x85: lambda m: m.make_tuple(1),
    0x86: lambda m: m.make_tuple(2),
    0x87: lambda m: m.make_tuple(3),
    ord("]"): lambda m: m.stack.append([]),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("}"): lambda m: m.stack.append({}),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("c"): _Machine.read_global,
    0x93: _Machine.pop_global_names,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.load_storage,
}
_CALLS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _Machine.call_ordered_dict,
    "torch.Size": _Machine.call_size,
    "torch.device": _Machine.call_device,
    "torch._utils._rebuild_tensor": _Machine.call_tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.call_tensor_v2,
    "torch._utils._rebuild_parameter": _Machine.call_parameter,
    "torch._utils._rebuild_parameter_with_state": _Machine.call_parameter,
}
