"""The errors of the server.

ServeFailure
├── ApiError     a request that gets an error for an answer
├── ServerFailure  a server that is asked and does not answer as it should (exit code 1)
└── EngineDied   the engine failed: nothing can be answered any more (exit code 1)
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..runtime.errors import RuntimeFailure


class ServeFailure(RuntimeFailure):
    """Anything that goes wrong while serving."""


class ApiError(ServeFailure):
    """A request that is refused: an HTTP status, and an object as OpenAI's clients read it.

    https://platform.openai.com/docs/guides/error-codes
    """

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None,
        code: str | None = None, retry_after: int | None = None,
    ) -> None:  # fmt: skip
        """Say what is wrong.

        Args:
            message: one line for the user.
            status: of HTTP.
            param: the field of the request that is to blame.
            code: a word that programs compare.
            retry_after: seconds after which another try makes sense.
        """
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """OpenAI's word for errors of this status."""
        if self.status >= 500:
            return "server_error"
        return _KINDS.get(self.status, "invalid_request_error")

    def as_json(self) -> dict[str, Any]:
        """The answer's body."""
        return {
            "error": {
                "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip


#: What those get whose requests cannot be answered before the server has ended.
ENDING = ApiError("the server is shutting down", 503)
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ServerFailure(ServeFailure):
    """A server that is asked and does not answer as it should."""

    exit_code: ClassVar[int] = 1


class EngineDied(ServeFailure):
    """The engine cannot compute any more; the server ends."""

    exit_code: ClassVar[int] = 1
