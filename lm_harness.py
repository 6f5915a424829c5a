"""Infer-OS as a model of lm-evaluation-harness (``pip install 'infer-os[lm-eval]'``).

Importing this registers the model ``infer-os``; ``python -m infer_os.lm_harness`` is the harness's
own command line with it. Goes in: the harness's requests. Comes out: log-likelihoods and texts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from .api import load
from .runtime.batch.settings import BatchSettings
from .runtime.errors import RuntimeFailure, SettingsError
from .runtime.scoring.settings import ScoringSettings
from .runtime.settings import EngineSettings

#: Tokens of a text where a task sets no limit: that of the harness's ``hf``.
_MOST_TOKENS = 256
#: What a task may set of drawing, apart from the temperature.
_SAMPLING = ("top_k", "top_p", "min_p", "seed")
_NO_FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


class InferOSLM(LM):  # type: ignore[misc]
    """A model that scores and continues texts for lm-evaluation-harness."""

    def __init__(
        self,
        pretrained: str,
        *,
        type: str = "",
        max_length: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **engine: Any,
    ) -> None:
        """Load a model.

        Args:
            pretrained: what :func:`~.api.load` takes as a model.
            type: what a folder or a name is converted to; empty for what the cache has, else q4_0.
            max_length: tokens of context; 0 takes what the model was trained for.
            batch_size: texts at once; 1, which is the harness's default, or "auto" chooses.
            device: has no effect; the harness names a GPU where none is given.
            max_batch_size: bounds ``batch_size``.
            engine: other fields of EngineSettings, such as ``threads``, ``kv`` or ``load``.

        Raises:
            SettingsError: an argument that cannot work.
            Others as :func:`~.api.load`.
        """
        super().__init__()
        unknown = set(engine) - set(EngineSettings.__dataclass_fields__)
        if unknown:
            raise SettingsError(f"there is no such setting: {', '.join(sorted(unknown))}")
        at_once = str(batch_size)
        self._parallel = int(at_once) if at_once.isdecimal() and at_once != "1" else 0
        if max_batch_size:
            self._parallel = min(self._parallel or max_batch_size, max_batch_size)
        settings = EngineSettings(context=int(max_length), **engine)
        self._model = load(os.fspath(pretrained), settings=settings, type=type)

    @property
    def max_length(self) -> int:
        """Tokens of context."""
        return self._model.n_ctx

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is what would be drawn."""
        found: list[tuple[float, bool]] = []
        pairs = [request.args for request in requests]
        for pair, result in zip(pairs, self._scores(pairs, disable_tqdm), strict=True):
            found.append((result.logprob, result.is_greedy))
            self.cache_hook.add_partial("loglikelihood", pair, found[-1])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text, whose first token follows the one that begins texts."""
        found: list[float] = []
        texts = [request.args[0] for request in requests]
        for text, result in zip(texts, self._scores(texts, disable_tqdm), strict=True):
            found.append(result.logprob)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result.logprob)
        return found

    def _scores(self, texts: Sequence[Any], disable_tqdm: bool) -> Iterator[Any]:
        """A result for each text or pair, in their order."""
        settings = ScoringSettings(self._parallel, totals=True)
        # a pair may come as a tuple of another kind
        given = [text if isinstance(text, str) else tuple(text) for text in texts]
        with closing(self._model.score(given, settings=settings)) as results:
            yield from _good(tqdm(results, "scoring", len(texts), disable=disable_tqdm))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context up to one of its stop strings, or the end of the text."""
        records = [self._record(*request.args) for request in requests]
        found: list[str] = []
        settings = BatchSettings(self._parallel)
        with closing(self._model.batch(records, settings=settings, ordered=True)) as results:
            shown = tqdm(results, "generating", len(records), disable=disable_tqdm)
            for request, result in zip(requests, _good(shown), strict=True):
                found.append(result.text)
                self.cache_hook.add_partial("generate_until", request.args, result.text)
        return found

    def _record(self, context: str, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a batch is asked for a request."""
        kwargs = normalize_gen_kwargs(gen_kwargs, _MOST_TOKENS)
        limit = int(kwargs["max_gen_toks"])
        room = self.max_length - limit
        if room < 1:
            raise SettingsError(
                f"max_gen_toks {limit}: the context has {self.max_length} tokens; raise max_length"
            )
        return {
            "prompt": self._last_part(context, room), "max_tokens": limit,
            "stop": [text for text in kwargs["until"] if text],
            "temperature": float(kwargs.get("temperature", 0.0)), **_NO_FILTERS,
            **{key: kwargs[key] for key in _SAMPLING if kwargs.get(key) is not None},
        }  # fmt: skip

    def _last_part(self, text: str, n_tokens: int) -> str:
        """The end of a text that has no more tokens than so many."""
        tokens, n_kept = self._model.tokenize(text), n_tokens
        while len(tokens) > n_tokens:
            text = self._model.detokenize(tokens[-n_kept:])
            # where a text is cut, it may be more tokens than it was
            tokens = self._model.tokenize(text)
            n_kept -= 1
        return text


def _good(results: Iterable[Any]) -> Iterator[Any]:
    """The same results.

    Raises:
        RuntimeFailure: one is an error; the harness knows no request without an answer.
    """
    for result in results:
        if result.error is not None:
            raise RuntimeFailure(result.error)
        yield result


register_model("infer-os")(InferOSLM)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
