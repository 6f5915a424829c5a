"""AMX in our kernels: used where a child process has multiplied with it and got the right products.

A processor and a system may both say that they have it, and its instructions still end the
process: in a virtual machine, under an emulator, or because of the compiler. So they are first run
in a child process, as llama.cpp's layouts are (see ``layouts.py``), and the outcome is kept too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infer_os.cache import cache_folder

from .abi import Status
from .layouts import Trial, known_trial, run_trial
from .library import load_library

_VARIANT = b"amx"
_FILE = "amx.json"


@dataclass(frozen=True, slots=True)
class Amx:
    """Whether the processor has AMX's products of bytes, and why they are not used, if so."""

    present: bool = False
    complaint: str = ""

    @property
    def in_use(self) -> bool:
        """Whether products of many columns use it."""
        return self.present and not self.complaint

    @property
    def text(self) -> str:
        """The same in a few words."""
        if not self.present:
            return "not present"
        return f"present, not used: {self.complaint}" if self.complaint else "used"


#: Of a processor without it.
NO_AMX = Amx()


def has_amx() -> bool:
    """Whether the processor and its system have it, and our library was compiled with it."""
    return bool(load_library().inferos_has_amx())


def use_amx(trial: Callable[[], Trial] | None = None) -> Amx:
    """Let our kernels use it from now on, if it is there and works.

    Args:
        trial: multiplies with it; by default the stored one of this library on this machine.
    """
    if not has_amx():
        return NO_AMX
    library = load_library()
    before = library.inferos_kernels_name()
    # asked first: a refusal costs a system call, and a child process at every start otherwise
    if library.inferos_kernels_choose(_VARIANT) != Status.OK:
        return Amx(True, "the system does not allow it")
    complaint = (trial or _known)().complaint
    if complaint:
        library.inferos_kernels_choose(before)
    return Amx(True, complaint)


def _known() -> Trial:
    return known_trial(
        cache_folder(),
        lambda: run_trial(call=("inferos_kernels_try", _VARIANT.decode())),
        file=_FILE,
        libraries=[Path(load_library()._name)],
    )
