"""Write tiny random checkpoints with Hugging Face's float32 logits, or compare against them live.

``make_references.py write`` fills the folders beside this file, which ``make test`` compares with.
``make_references.py check`` builds fresh ones with other seeds in a temporary folder, converts them
and compares, so that the comparison does not rest on stored numbers alone.

Needs torch and transformers; nothing else in the project does but the training script.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
#: The largest KL of each reference, for docs/models.md.
MEASURED = HERE / "measured.json"
N_VOCAB = 300
N_TOKENS = 48
#: Positions of those that are compared to the full context.
N_FULL = 64

_TEXT = """The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.
    It is 12345 steps from here to there; it's only 678 back again!
Ein Jäger aus Kurpfalz, der reitet durch den grünen Wald. Où est la bibliothèque?
東京は日本の首都です。
"""


Config = dict[str, Any]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Reference:
    """A tiny checkpoint: how to make its model, and how its folder differs from the usual one.

    Those that are not ``stored`` are only checked live.
    """

    name: str
    config: Callable[[], Any]
    change: Callable[[Config], Config] = lambda config: config
    store: Callable[[Weights], Weights] = lambda weights: weights
    rows_beyond_tokenizer: int = 0
    shards: int = 1
    dtype: torch.dtype = torch.float16
    stored: bool = True
    seed: int = 20
    spread: float = 0.25
    n_tokens: int = N_TOKENS


def _neox(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 256, "max_position_embeddings": 128,
        "hidden_act": "gelu_fast", "bos_token_id": 0, "eos_token_id": 0,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return lambda: transformers.GPTNeoXConfig(**{**settings, **changes})


def _gptj(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128,
        "rotary_dim": 16, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return lambda: transformers.GPTJConfig(**{**settings, **changes})


def _bloom(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "hidden_size": 64, "n_layer": 2, "n_head": 2, "bos_token_id": 0,
        "eos_token_id": 0,
    }  # fmt: skip
    return lambda: transformers.BloomConfig(**{**settings, **changes})


def _gpt2(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return lambda: transformers.GPT2Config(**{**settings, **changes})


def _codegen(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": N_FULL,
        "rotary_dim": 16, "bos_token_id": 0, "eos_token_id": 0, "n_inner": 128,
    }  # fmt: skip
    return lambda: transformers.CodeGenConfig(**{**settings, **changes})


def _bigcode(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": N_FULL,
        "bos_token_id": 0, "eos_token_id": 0, "n_inner": 128,
    }  # fmt: skip
    return lambda: transformers.GPTBigCodeConfig(**{**settings, **changes})


def _opt(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "ffn_dim": 128,
        "num_attention_heads": 2, "max_position_embeddings": N_FULL, "word_embed_proj_dim": 64,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    return lambda: transformers.OPTConfig(**{**settings, **changes})


def _neo(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "hidden_size": 64, "num_layers": 2, "num_heads": 2,
        "max_position_embeddings": 2 * N_FULL, "intermediate_size": 128, "window_size": 24,
        "attention_types": [[["global", "local"], 1]], "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return lambda: transformers.GPTNeoConfig(**{**settings, **changes})


def _xglm(**changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "d_model": 64, "num_layers": 2, "attention_heads": 2,
        "ffn_dim": 128, "max_position_embeddings": N_FULL, "bos_token_id": 0, "eos_token_id": 0,
        "activation_function": "gelu_new", "pad_token_id": 1,
    }  # fmt: skip
    return lambda: transformers.XGLMConfig(**{**settings, **changes})


def _mpt(attention: Config | None = None, **changes: Any) -> Callable[[], Any]:
    settings = {
        "vocab_size": N_VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": N_FULL,
        "attn_config": attention or {}, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return lambda: transformers.MptConfig(**{**settings, **changes})


def _rope(**scaling: Any) -> Config:
    return {
        "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, **scaling},
        "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": N_FULL,
    }  # fmt: skip


def _classic_rotary(config: Config) -> Config:
    """Spell the rotary settings as transformers 4 did."""
    rope = config.pop("rope_parameters")
    return {
        **config,
        "rotary_pct": rope["partial_rotary_factor"],
        "rotary_emb_base": rope["rope_theta"],
    }


def _hidden_size_spelling(config: Config) -> Config:
    """BLOOM's older configs say n_embed and num_attention_heads."""
    config["n_embed"] = config.pop("hidden_size")
    config["num_attention_heads"] = config.pop("n_head")
    return config


def _without_prefix(weights: Weights) -> Weights:
    return {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}


def _with_buffers(weights: Weights) -> Weights:
    """Add the buffers that files of older versions carry."""
    extra = {}
    for name in weights:
        for end, stem in (("attn.q_proj.weight", "attn"), ("attn.c_attn.weight", "attn"),
                          ("attention.query_key_value.weight", "attention")):  # fmt: skip
            if name.endswith(f".{end}"):
                base = name.removesuffix(end) + stem
                extra[f"{base}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
                extra[f"{base}.masked_bias"] = torch.tensor(-1e9)
                if stem == "attention":
                    extra[f"{base}.rotary_emb.inv_freq"] = torch.ones(4)
    return {**weights, **extra}


def _with_head(weights: Weights) -> Weights:
    """Add the copy of the tied head that some files carry."""
    return {**weights, "lm_head.weight": weights["transformer.wte.weight"].clone()}


_SEQUENTIAL = {
    "use_parallel_residual": False,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5,
    },
}  # fmt: skip

_MUP = {
    "mup_width_scale": 0.25, "mup_output_alpha": 6.0, "mup_embeddings_scale": 10.0,
    "mup_scale_qk_dot_by_d": True,
}  # fmt: skip

REFERENCES = (
    Reference("neox-parallel", _neox(use_parallel_residual=True), shards=2, store=_with_buffers),
    Reference(
        "neox-sequential", _neox(**_SEQUENTIAL), change=_classic_rotary, rows_beyond_tokenizer=20
    ),
    Reference("neox-tied", _neox(tie_word_embeddings=True, hidden_size=32), stored=False),
    Reference("neox-erf-gelu", _neox(hidden_act="gelu", hidden_size=32)),
    Reference("neox-no-bias", _neox(attention_bias=False, hidden_size=32), stored=False),
    Reference("gptj", _gptj(), store=_with_buffers),
    # a rotary_dim of null stands for the whole head
    Reference(
        "gptj-whole-head", _gptj(n_embd=32, n_head=1, rotary_dim=32, n_inner=96),
        change=lambda config: {**config, "rotary_dim": None},
    ),
    Reference(
        "gptj-no-prefix", _gptj(n_embd=32, n_head=1, rotary_dim=4), store=_without_prefix,
        stored=False,
    ),
    Reference("bloom", _bloom(), store=_without_prefix, dtype=torch.bfloat16),
    Reference("bloom-prefix", _bloom(hidden_size=96, n_head=3), change=_hidden_size_spelling),
    Reference("gpt2", _gpt2(), store=lambda w: _with_buffers(_with_head(w))),
    Reference(
        "gpt2-untied", _gpt2(n_embd=32, tie_word_embeddings=False, n_inner=96),
        dtype=torch.float32,
    ),
    Reference(
        "gpt2-erf-gelu", _gpt2(n_embd=32, activation_function="gelu"), stored=False
    ),
    Reference("gpt2-no-prefix", _gpt2(n_embd=32), store=_without_prefix, stored=False),
    Reference(
        "gpt2-layer-scales",
        _gpt2(n_layer=3, n_inner=64, n_positions=N_FULL, scale_attn_by_inverse_layer_idx=True),
        n_tokens=N_FULL,
    ),
    Reference("gpt2-unscaled", _gpt2(n_embd=32, scale_attn_weights=False), stored=False),
    Reference(
        "gpt2-relu", _gpt2(n_inner=128, n_positions=N_FULL, activation_function="relu"),
        n_tokens=N_FULL,
    ),
    Reference("gpt2-mup", _gpt2(n_inner=64, n_positions=N_FULL, **_MUP), n_tokens=N_FULL),
    Reference(
        "gpt2-mup-untied",
        _gpt2(n_inner=64, n_positions=N_FULL, tie_word_embeddings=False, **_MUP),
        n_tokens=N_FULL, stored=False,
    ),
    Reference(
        "gpt2-mup-by-layer",
        _gpt2(
            n_layer=3, n_positions=N_FULL, n_embd=96, n_head=3, activation_function="gelu",
            scale_attn_by_inverse_layer_idx=True, mup_output_alpha=12.0, mup_width_scale=0.125,
            mup_scale_qk_dot_by_d=True,
        ),
        n_tokens=N_FULL, stored=False,
    ),
    Reference("codegen", _codegen(), n_tokens=N_FULL),
    Reference(
        "codegen-whole-head", _codegen(n_embd=64, n_head=4, rotary_dim=16), n_tokens=N_FULL,
        stored=False,
    ),
    Reference("codegen-erf-gelu", _codegen(activation_function="gelu"), stored=False),
    Reference("bigcode", _bigcode(), n_tokens=N_FULL),
    Reference("bigcode-all-heads", _bigcode(multi_query=False), n_tokens=N_FULL, stored=False),
    Reference(
        "bigcode-untied",
        _bigcode(tie_word_embeddings=False, scale_attn_weights=False, activation_function="gelu"),
        n_tokens=N_FULL, stored=False,
    ),
    Reference("opt", _opt(), n_tokens=N_FULL),
    Reference("opt-untied", _opt(tie_word_embeddings=False), n_tokens=N_FULL, stored=False),
    Reference(
        "galactica", _opt(enable_bias=False, activation_function="gelu"), n_tokens=N_FULL,
        spread=0.15,
    ),
    Reference("neox-linear", _neox(**_rope(rope_type="linear", factor=4.0)), n_tokens=N_FULL),
    Reference(
        "neox-yarn",
        _neox(**_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
        n_tokens=N_FULL,
    ),
    Reference(
        "neox-yarn-factor",
        _neox(
            **_rope(
                rope_type="yarn", factor=8.0, original_max_position_embeddings=8,
                attention_factor=0.9,
            )
        ),
        n_tokens=N_FULL, stored=False,
    ),
    Reference(
        "neox-no-rotary",
        _neox(**(_rope() | {"rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.0,
        }})),
        n_tokens=N_FULL,
    ),
    Reference("gpt-neo", _neo(), n_tokens=2 * N_FULL),
    Reference("gpt-neo-untied", _neo(tie_word_embeddings=False), n_tokens=2 * N_FULL, stored=False),
    Reference(
        "gpt-neo-whole-context",
        _neo(
            num_layers=4, attention_types=[[["global", "local"], 2]], window_size=256,
            max_position_embeddings=2048,
        ),
        n_tokens=2048, stored=False,
    ),
    # TinyStories' heads have 4, 8, 16, 32 and 48 values
    Reference("gpt-neo-heads-of-4", _neo(num_heads=16), n_tokens=2 * N_FULL, stored=False),
    Reference(
        "gpt-neo-heads-of-48", _neo(hidden_size=96), n_tokens=2 * N_FULL, stored=False,
    ),
    Reference(
        "gpt-neo-global", _neo(attention_types=[[["global"], 2]]), n_tokens=2 * N_FULL,
        stored=False,
    ),
    Reference("xglm", _xglm(), n_tokens=N_FULL),
    Reference("xglm-unscaled", _xglm(scale_embedding=False), n_tokens=N_FULL, stored=False),
    Reference("xglm-erf-gelu", _xglm(activation_function="gelu"), stored=False),
    Reference("mpt", _mpt(), n_tokens=N_FULL, spread=0.15),
    Reference("mpt-clipped", _mpt({"clip_qkv": 1.5}), n_tokens=N_FULL, stored=False),
    Reference(
        "mpt-six-heads", _mpt({"softmax_scale": 0.2}, d_model=96, n_heads=6), n_tokens=N_FULL,
        stored=False,
    ),
)  # fmt: skip


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE like GPT-NeoX's: NFC, no added space, runs of spaces as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.add_tokens(["    ", "  "])
    return tokenizer


def multiply_scales(model: Any) -> None:
    """Multiply a maximal update parametrization's scales where Cerebras' networks do.

    transformers' own GPT-2 does not know them, so this reference is ours: the sum of embeddings,
    the logits, and scores that are divided by a head's width are scaled as they are computed.
    """
    config = model.config
    embeddings = getattr(config, "mup_embeddings_scale", 1.0)
    logits = getattr(config, "mup_output_alpha", 1.0) * getattr(config, "mup_width_scale", 1.0)
    model.transformer.drop.register_forward_hook(lambda _, __, x: x * embeddings)
    model.lm_head.register_forward_hook(lambda _, __, x: x * logits)
    if getattr(config, "mup_scale_qk_dot_by_d", False):
        width = config.n_embd // config.n_head

        def divide_queries(_: Any, __: Any, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = qkv.split(config.n_embd, dim=-1)
            return torch.cat((q / width**0.5, k, v), dim=-1)

        for block in model.transformer.h:
            block.attn.c_attn.register_forward_hook(divide_queries)


def build(reference: Reference, folder: Path, seed: int) -> None:
    """Write config, weights, tokenizer and expected logits into ``folder``."""
    torch.manual_seed(seed)
    config = reference.config()
    config.vocab_size += reference.rows_beyond_tokenizer
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    # values that the stored type holds exactly, so that both sides see the same weights
    rounded = lambda values: values.to(reference.dtype).float()  # noqa: E731
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # far from the usual initial values, so that every bias and norm matters
            spread = reference.spread if parameter.ndim > 1 else 0.5
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(rounded(torch.randn_like(parameter) * spread + centre))
    if hasattr(config, "mup_width_scale"):
        multiply_scales(model)
    tokens = torch.randint(0, N_VOCAB, (1, reference.n_tokens))
    with torch.no_grad():
        logits = model(tokens).logits[0]  # (n_tokens, vocab)
    folder.mkdir(parents=True, exist_ok=True)
    shard_bytes = 1 << 30 if reference.shards == 1 else 150_000
    model.to(reference.dtype).save_pretrained(folder, max_shard_size=shard_bytes)
    for path in folder.glob("*.safetensors"):
        weights = reference.store(load_file(path))
        save_file(weights, path, metadata={"format": "pt"})
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    settings = reference.change(json.loads(path.read_text()))
    settings.pop("transformers_version", None)
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    np.save(folder / "tokens.npy", tokens[0].numpy().astype(np.int32))
    np.save(folder / "logits.npy", logits.numpy().astype(np.float32))


def check(seeds: range) -> tuple[int, dict[str, dict[str, float]]]:
    """Rebuild each reference with other seeds, convert it and compare.

    Returns the number of failures and, by name and type, the largest KL of any seed.
    """
    sys.path.insert(0, str(HERE.parent))
    from comparison import compare_with_reference

    failures = 0
    worst: dict[str, dict[str, float]] = {}
    for reference in REFERENCES:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / reference.name
                build(reference, path, seed)
                for kind in ("f32", "f16"):
                    result = compare_with_reference(path, kind, Path(folder) / f"{kind}.gguf")
                    # two tokens that are as likely as each other may change places
                    good = result.kl < 1e-5 and result.largest_gap < 0.02
                    failures += not good
                    kinds = worst.setdefault(reference.name, {})
                    kinds[kind] = max(kinds.get(kind, 0.0), float(f"{result.kl:.1e}"))
                    print(
                        f"{'ok  ' if good else 'FAIL'} {reference.name} seed {seed} {kind}: "
                        f"KL {result.kl:.2e}, argmax {result.argmax_equal}/{result.n_tokens}"
                    )
    return failures, worst


def check_bundled() -> int:
    """Compare the bundled models with transformers on held-out text; count the failures.

    At F32 the KL must stay below 1e-5, at Q8_0 below 1e-3.
    """
    sys.path.insert(0, str(HERE.parent))
    from comparison import all_logits, compare_logits

    from infer_os.convert.pipeline import convert
    from infer_os.convert.settings import ConvertSettings
    from infer_os.models.bundled import DRAFT, HELD_OUT, TARGET

    failures = 0
    for folder in (TARGET, DRAFT):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = tokenizer.encode(HELD_OUT.read_text()[:8000]).ids[:512]
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            expected = model.eval()(torch.tensor([tokens])).logits[0].numpy()
        for kind, bound in (("f32", 1e-5), ("q8_0", 1e-3)):
            with tempfile.TemporaryDirectory() as place:
                gguf = Path(place) / "model.gguf"
                convert(ConvertSettings(folder, gguf, kind))
                result = compare_logits(expected, all_logits(gguf, tokens))
            failures += result.kl >= bound
            print(
                f"{'ok  ' if result.kl < bound else 'FAIL'} {folder.name} {kind}: KL "
                f"{result.kl:.2e}, argmax {result.argmax_equal}/{result.n_tokens}"
            )
    return failures


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("write", "check"))
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds per reference")
    parser.add_argument("--record", action="store_true", help=f"write {MEASURED.name}")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.command == "write":
        for reference in REFERENCES:
            if reference.stored:
                build(reference, HERE / reference.name, reference.seed)
                print(f"wrote {reference.name}")
        return
    failures, worst = check(range(100, 100 + arguments.seeds))
    failures += check_bundled()
    if arguments.record:
        MEASURED.write_text(json.dumps(worst, indent=1) + "\n")
    print(f"{failures} comparisons failed" if failures else "all comparisons agree")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
