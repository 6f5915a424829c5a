"""Answer /v1/embeddings: texts or tokens in, a vector of length 1 for each out.

https://platform.openai.com/docs/api-reference/embeddings. The vectors are those of ``infer-os
embed``, the mean of a text's tokens; a text's is computed between two steps of the texts that are
written.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.fields import text, whole
from infer_os.native.errors import NotFinite

from ..runtime.errors import PromptError
from ..runtime.plan.memory_plan import MemoryShortage
from ..runtime.prompt import tokenize
from .asked_model import check_model
from .body import Body
from .engine_thread import EngineThread
from .errors import ApiError
from .event_stream import json_bytes
from .generation_request import PROMPT, Defaults, Prompt, prompts_of

_FORMATS = ("float", "base64")


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts or tokens, whether vectors are wanted as numbers, and how long they should be."""

    inputs: tuple[Prompt, ...]
    as_numbers: bool
    dimensions: int | None


def read_embeddings(value: dict[str, Any], defaults: Defaults) -> EmbeddingRequest:
    """A request of /v1/embeddings.

    Raises:
        ApiError: a field that is wrong or unknown.
    """
    body = Body(value)
    check_model(body, defaults.models)
    inputs = prompts_of(body.take_required("input", PROMPT), defaults.n_vocab, "input")
    kind = text(lambda form: form in _FORMATS, " or ".join(_FORMATS))
    form = body.take("encoding_format", kind, "float")
    dimensions = body.take("dimensions", whole(1, 1 << 20))
    body.ignore("user")
    body.end()
    return EmbeddingRequest(inputs, form == "float", dimensions)


def tokens_of_inputs(asked: EmbeddingRequest, thread: EngineThread) -> list[list[int]]:
    """The tokens of each input; may take its time.

    Raises:
        ApiError: there are none, or more than the context holds (413).
    """
    n_ctx, found = thread.engine.n_ctx, []
    for i, item in enumerate(asked.inputs):
        place = "input" if len(asked.inputs) == 1 else f"input[{i}]"
        try:
            tokens = list(item) if isinstance(item, tuple) else (
                tokenize(thread.engine.vocab, item, n_ctx)
            )  # fmt: skip
        except PromptError as error:
            raise _too_long(str(error)) from None
        if not tokens:
            raise ApiError(f"{place} is empty", param="input", code="invalid_value")
        if len(tokens) > n_ctx:
            raise _too_long(f"{place} has {len(tokens)} tokens, but the context holds {n_ctx}")
        found.append(tokens)
    return found


async def embeddings(
    asked: EmbeddingRequest, inputs: list[list[int]], thread: EngineThread, model: str
) -> bytes:
    """The answer as JSON, with a vector for each of the inputs.

    Each is written when it is there: a thousand at once would hold up all other clients.

    Raises:
        ApiError: no room, no memory for the computation, other dimensions than the model has, or
            a vector that is not finite or has no length.
    """
    data: list[bytes] = []
    for i, tokens in enumerate(inputs):
        try:
            vector = await thread.ask(partial(thread.engine.embed, tokens))
        except MemoryShortage as error:
            raise ApiError(f"embeddings: {error}", 503, code="no_memory") from None
        except PromptError as error:
            raise ApiError(str(error), param="input") from None
        except NotFinite as error:
            raise ApiError(f"embeddings: {error}", 500) from None
        if asked.dimensions not in (None, len(vector)):
            raise ApiError(
                f"dimensions is {asked.dimensions}: this model's vectors have {len(vector)}",
                param="dimensions", code="invalid_value",
            )  # fmt: skip
        value = vector.tolist() if asked.as_numbers else _as_base64(vector)
        data.append(json_bytes({"object": "embedding", "index": i, "embedding": value}))
    n = sum(map(len, inputs))
    usage = {"prompt_tokens": n, "total_tokens": n}
    rest = json_bytes({"object": "list", "model": model, "usage": usage})
    return b'{"data":[%b],%b' % (b",".join(data), rest[1:])


def _as_base64(vector: NDArray[np.float32]) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _too_long(message: str) -> ApiError:
    return ApiError(message, 413, param="input", code="context_length_exceeded")
