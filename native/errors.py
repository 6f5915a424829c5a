"""The errors of the native layer.

    NativeError
    ├── LibraryMismatch   the loaded llama.cpp is not the one that this package was built for
    ├── GgufError         a GGUF file whose header is malformed, truncated or hostile
    ├── ModelLoadError    llama.cpp refused a model or a context
    ├── QuantizeError     rows that cannot be quantized as asked
    ├── StateError        a saved state that does not fit
    ├── GrammarError      a grammar, JSON schema or regular expression that cannot be used
    │   └── ConstraintFailed  a text that cannot be held to its grammar any longer
    ├── EvaluateError     models and tokens that cannot be evaluated together
    ├── NotFinite         a model that computes NaN or infinity
    └── DecodeError       llama_decode failed
        ├── ModelChanged  the model's file was cut or overwritten while it was in use
        ├── ContextFull   no room left in the KV cache
        └── Interrupted   aborted by Ctrl-C

``exit_code`` 1 marks failures at run time; the others are about the user's input (2).
A message says what is wrong, where, and what would work; llama.cpp's own last words are added.
"""

from __future__ import annotations

from typing import ClassVar

from infer_os.errors import Error


class NativeError(Error):
    """Anything that goes wrong at the door to C."""


class LibraryMismatch(NativeError):
    """The libraries in this process do not belong together."""


class GgufError(NativeError):
    """A GGUF file that must not reach llama.cpp."""


class ModelLoadError(NativeError):
    """A model or context could not be created."""


class QuantizeError(NativeError):
    """Rows that cannot be quantized as asked."""


class StateError(NativeError):
    """A saved state that does not fit the context."""


class GrammarError(NativeError):
    """A grammar, a JSON schema or a regular expression that cannot be used."""


class ConstraintFailed(GrammarError):
    """A text that cannot be held to its grammar any longer: the grammar became too large."""

    exit_code: ClassVar[int] = 1


class EvaluateError(NativeError):
    """Too few tokens, models that cannot be compared, or values that are not finite."""


class NotFinite(NativeError):
    """A model that computes NaN or infinity, from which nothing can be drawn."""

    def __init__(self, what: str = "probabilities") -> None:
        super().__init__(
            f"the model computes no finite {what}: its file, or that of an adapter, is damaged or "
            "has values that are too large"
        )


class DecodeError(NativeError):
    """llama_decode failed."""

    exit_code: ClassVar[int] = 1


class ModelChanged(DecodeError):
    """The mapped file has changed: nothing computed since can be trusted."""


class ContextFull(DecodeError):
    """The KV cache has no room for the batch."""


class Interrupted(DecodeError):
    """Decoding was stopped by an interrupt; the tokens of finished parts stay in the cache."""
