"""Settings of a benchmark, as records that check themselves."""

from __future__ import annotations

from dataclasses import dataclass

from infer_os.fields import check_fields, numbers, whole
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.kv.schedule import parse_spec

#: The depths by default, as far as the context reaches.
DEPTHS = (0, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32)
#: ``LLAMA_MAX_SEQ`` of llama.cpp's llama-cparams.h.
MOST_SEQUENCES = 256
MOST_DEPTH = 1 << 20
_BENCH = {
    "depths": numbers(0, MOST_DEPTH),
    "batches": numbers(1, MOST_SEQUENCES),
    "repeats": whole(1, 1000),
    "n_prompt": whole(1, 1 << 16),
    "n_decode": whole(1, 1 << 16),
}


def parse_counts(option: str, text: str, low: int, high: int) -> tuple[int, ...]:
    """Numbers from a list such as ``0,512,1024``, sorted, each once; empty for an empty text.

    Raises:
        SettingsError: something other than a number from ``low`` to ``high``.
    """
    found = set()
    for part in text.split(",") if text else ():
        word = part.strip()
        if not (word.isascii() and word.isdigit() and low <= int(word) <= high):
            raise SettingsError(
                f"{option} {text}: {word!r} is not a number from {low} to {high}; expected a list "
                f"such as {'1,4,16' if low else '0,512,1024'}"
            )
        found.add(int(word))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure. Empty ``depths`` and ``batches`` mean the default ones.

    At each depth, ``n_decode`` tokens are decoded one by one, and ``n_prompt`` computed at once.
    """

    depths: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    repeats: int = 3
    n_prompt: int = 128
    n_decode: int = 32

    def __post_init__(self) -> None:
        check_fields(self, _BENCH, SettingsError)

    @property
    def n_measured(self) -> int:
        """Tokens that are computed after each depth."""
        return self.n_prompt + self.n_decode


def fitting_depths(settings: BenchSettings, n_ctx: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The depths to measure in a context of ``n_ctx`` tokens, and notes.

    Of the default ones, the first that is too deep becomes the deepest that fits.

    Raises:
        SettingsError: a depth that was asked for does not fit.
    """
    deepest = n_ctx - settings.n_measured - 1
    if settings.depths:
        if settings.depths[-1] > deepest:
            raise SettingsError(
                f"--depths {settings.depths[-1]}: with {settings.n_measured} tokens measured "
                f"after it, it does not fit the context of {n_ctx}; the deepest is "
                f"{max(0, deepest)}, or raise --context"
            )
        return settings.depths, ()
    if deepest < 0:
        raise SettingsError(
            f"the context of {n_ctx} tokens has no room for the {settings.n_measured} that are "
            "measured; lower --prompt-tokens and --tokens, or raise --context"
        )
    fitting = [depth for depth in DEPTHS if depth <= deepest]
    if len(fitting) == len(DEPTHS):
        return DEPTHS, ()
    if deepest > fitting[-1]:
        fitting.append(deepest)
    note = (
        f"the context of {n_ctx} tokens reaches to depth {deepest}, not {DEPTHS[-1]}; a larger "
        "--context reaches further"
    )
    return tuple(fitting), (note,)


def check_batches(batches: tuple[int, ...], n_trained: int, n_tokens: int) -> None:
    """Check that a sequence of ``n_tokens`` fits the model.

    Raises:
        SettingsError: it does not.
    """
    if batches and 0 < n_trained < n_tokens:
        raise SettingsError(
            f"--batch: sequences of {n_tokens} tokens, but the model has {n_trained} positions; "
            "lower --tokens"
        )


def split_specs(option: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Caches from lists of SPECs: ``f16,q8_0,f16:512,q4_0:2048`` are three.

    A stage without a token count ends its SPEC, and so does one that reaches no further than the
    stage before it.

    Args:
        option: named in errors.
        texts: what was given; each text starts a new SPEC.

    Raises:
        SettingsError: something is not a SPEC.
    """
    specs: list[str] = []
    for text in texts:
        for i, stage in enumerate(part.strip() for part in text.split(",")):
            if i and _goes_on(specs[-1], stage):
                specs[-1] += f",{stage}"
            else:
                specs.append(stage)
    for spec in specs:
        try:
            parse_spec(spec)
        except SettingsError as error:
            raise SettingsError(str(error).replace("--kv", option, 1)) from None
    return tuple(dict.fromkeys(specs))


def _goes_on(spec: str, stage: str) -> bool:
    """Whether a stage continues a SPEC: the last stage there ends, and this one reaches further."""
    _, _, last = spec.rpartition(",")[2].partition(":")
    _, colon, count = stage.partition(":")
    if not (last.isascii() and last.isdigit()):
        return False
    return not colon or (count.isascii() and count.isdigit() and int(count) > int(last))
