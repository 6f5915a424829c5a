"""The settings of a conversion, as a record that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infer_os.fields import check_fields, flag, path, text, whole

from .errors import UnsupportedError
from .mixture import WeightBudget
from .source import AdapterSource, HubSource
from .types import recipe_named

_MOST_THREADS = 512
_KINDS = {
    "output": path().or_none(),
    "type": text(),
    "threads": whole(0, _MOST_THREADS, f"1 to {_MOST_THREADS}"),
    "force": flag(),
    "dry_run": flag(),
    "verify": flag(),
    "keep_source": flag(),
    "imatrix": path().or_none(),
    "statistics": path().or_none(),
    "fold_rotation": flag(),
    "tokenizer": path().or_none(),
}


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """What to convert and how. ``output`` None names the file after the source and the type.

    ``keep_source`` leaves the files of a hub model in the cache; ``verify`` reads the written file
    back, compares blocks with the source and lets llama.cpp compute with it, before it appears.
    ``imatrix`` is an importance matrix to quantize with, ``statistics`` a folder of those to
    compensate errors with. ``fold_rotation`` folds a rotation into
    the attention weights, so that a quantized KV cache loses less. ``adapters`` are added to the
    weights before they are quantized. With a ``budget`` each matrix gets the type that statistics
    say is best, and ``type`` has no effect. A ``source`` that is a file is an old ggml file, whose
    ``tokenizer`` is in a folder.
    """

    source: Path | HubSource
    output: Path | None = None
    type: str = "q4_0"
    threads: int = 0
    force: bool = False
    dry_run: bool = False
    verify: bool = False
    keep_source: bool = False
    imatrix: Path | None = None
    statistics: Path | None = None
    fold_rotation: bool = False
    adapters: tuple[AdapterSource, ...] = ()
    tokenizer: Path | None = None
    budget: WeightBudget | None = None

    def __post_init__(self) -> None:
        check_fields(self, _KINDS, _refuse)
        recipe_named(self.type)
        if self.imatrix is not None:
            refuse_idle_weights("--imatrix", self.type)
            if self.statistics is not None:
                raise UnsupportedError("--imatrix and --statistics: both weigh; drop one of them")
        if self.budget is not None and self.imatrix is not None:
            raise UnsupportedError(
                f"{self.budget.option}: --imatrix does not say what each matrix loses; "
                "--calibrate TEXT or --statistics DIR does"
            )
        if self.output == Path("-"):
            raise UnsupportedError("-o -: a GGUF file cannot be streamed; name a file")
        if self.keep_source and isinstance(self.source, Path):
            raise UnsupportedError(f"--keep-source: {self.source} is a folder, and stays; drop it")
        if self.tokenizer is not None and not (
            isinstance(self.source, Path) and self.source.is_file()
        ):
            raise UnsupportedError(
                f"--tokenizer {self.tokenizer}: SOURCE has its own; it is for old ggml files"
            )
        for name, given in (("--verify", self.verify), ("--keep-source", self.keep_source)):
            if self.dry_run and given:
                raise UnsupportedError(f"{name} has no effect with --dry-run; drop one of them")

    @property
    def n_threads(self) -> int:
        """Threads of the quantizer: as requested, else one per usable core."""
        from infer_os.native.processors import usable_cores  # only needed here: settings load no C

        return self.threads or usable_cores()

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder; None for a model on the hub."""
        return self.source if isinstance(self.source, Path) else None

    @property
    def name(self) -> str:
        """The model's name."""
        if isinstance(self.source, HubSource):
            return self.source.name
        path = self.source.resolve()
        return path.stem if path.is_file() else path.name

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.output or Path(f"{self.name}-{self.label}.gguf")

    @property
    def label(self) -> str:
        """What the weights are called: their type, or the budget."""
        return self.budget.label if self.budget else self.type.lower()


def _refuse(message: str, field: str) -> UnsupportedError:
    return UnsupportedError(f"--{field.replace('_', '-')} {message}")


def refuse_idle_weights(option: str, kind: str) -> None:
    """Refuse importance weights for a type without importance weighting.

    Raises:
        UnsupportedError: they would have no effect.
    """
    # floats, and blocks too fine to gain from it
    if not recipe_named(kind).is_weighted:
        raise UnsupportedError(f"{option} has no effect with --type {kind}; drop one of them")
