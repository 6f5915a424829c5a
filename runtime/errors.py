"""The errors of the runtime.

RuntimeFailure
├── SettingsError   an option's value that cannot work
├── PromptError     a prompt that is empty or does not fit the context
├── TemplateFailure a chat template that cannot be rendered
├── ResultsUnwritten     results that cannot be written (while running: exit code 1)
├── SessionError    a session file that cannot be written, or must not be continued
│   └── SessionUnwritten  what was said cannot be kept (while running: exit code 1)
├── BenchError      a benchmark that cannot be run, drawn or written
│   └── ArmDied      a measured process ended by itself (exit code 1)
├── ModelBusy       a second generation in the thread that has one under way
├── ModelClosed     a model that is used after it was closed
├── ClusterError    a cluster that cannot be used, or that failed (while running: exit code 1)
└── MemoryShortage  a model that does not fit in this machine's memory
    └── LockShortage  weights that cannot be locked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from infer_os.errors import Error

if TYPE_CHECKING:
    pass


class RuntimeFailure(Error):
    """Anything that the runtime refuses."""


class SettingsError(RuntimeFailure):
    """An option whose value cannot work.

    ``field`` is the setting's name if it is a record's; the message then begins with it. Otherwise
    it is empty.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(f"{field} {message}" if field else message)
        self.field = field

    def spelled(self, name: str) -> str:
        """The message with the field called ``name``, as in the place where it was set."""
        return f"{name}{str(self).removeprefix(self.field)}" if self.field else str(self)


class PromptError(RuntimeFailure):
    """A prompt that cannot be processed."""


class TemplateFailure(RuntimeFailure):
    """A chat template that cannot be used."""


class ResultsUnwritten(RuntimeFailure):
    """Results that cannot be written; those written before stay."""

    exit_code: ClassVar[int] = 1


class SessionError(RuntimeFailure):
    """A session file that cannot be written, or that must not be continued here."""


class SessionUnwritten(SessionError):
    """A conversation that cannot be kept; what the file held before stays."""

    exit_code: ClassVar[int] = 1


class BenchError(RuntimeFailure):
    """A benchmark that cannot be run as asked, drawn or written."""


class ArmDied(BenchError):
    """A measured process ended by itself."""

    exit_code = 1


class ModelBusy(RuntimeFailure):
    """A generation that would wait for another one of its own thread."""


class ModelClosed(RuntimeFailure):
    """A model that is used after it was closed."""


class ClusterError(RuntimeFailure):
    """A cluster, or a node of it, that cannot go on. Earlier answers stay."""

    exit_code: ClassVar[int] = 1
