"""The errors of conversion.

    ConvertError
    ├── SourceError         no such folder, not a checkpoint, one of its files cannot be used
    │   ├── FileFormatError a malformed or truncated shard, index or tokenizer file
    │   ├── UnknownModel    a model that the hub does not have, or does not show
    │   ├── SourceChanged   a shard that was cut or overwritten while it was read
    │   └── PlanError       tensors that are missing or of the wrong shape: every gap in one message
    ├── UnsupportedError    an architecture, tokenizer or type that cannot be expressed
    ├── OutputError         an output that exists, cannot be written, or does not fit on the disk
    ├── DownloadError       the network or the hub failed; the same command continues later
    │   └── UnreachableError no answer at all, before anything was downloaded
    └── VerifyError         a written file is not what was planned (--verify)

``exit_code`` 1 marks failures at run time; the others are about the user's input (2).
A message says what is wrong, where (file, tensor, option) and what would work.
"""

from __future__ import annotations

from typing import ClassVar

from infer_os.errors import Error


class ConvertError(Error):
    """Anything that stops a conversion."""


class SourceError(ConvertError):
    """The checkpoint cannot be used."""


class FileFormatError(SourceError):
    """A file of the checkpoint is malformed or truncated."""


class UnknownModel(SourceError):
    """The hub has no model of that name, or does not show it; ``repository`` is the name."""

    def __init__(self, message: str, repository: str) -> None:
        super().__init__(message)
        self.repository = repository


class SourceChanged(SourceError):
    """A shard or an adapter has changed since it was opened; nothing made from it is kept."""

    exit_code: ClassVar[int] = 1


class PlanError(SourceError):
    """The checkpoint lacks tensors, or has them in the wrong shape."""


class UnsupportedError(ConvertError):
    """The checkpoint is sound, but holds something that has no GGUF form here."""


class OutputError(ConvertError):
    """The output cannot be written."""


class DownloadError(ConvertError):
    """The network or the hub failed; running again continues where it stopped."""

    exit_code: ClassVar[int] = 1


class UnreachableError(DownloadError):
    """No hub answers; nothing was downloaded yet."""


class VerifyError(ConvertError):
    """The written file does not pass its verification."""

    exit_code: ClassVar[int] = 1
