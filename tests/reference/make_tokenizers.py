"""Train tiny sentencepiece models with the real library and store what it makes of nasty text.

``make_tokenizers.py write`` fills ``tokenizers/`` beside this file: a folder per model with
spiece.model, the tokenizer's settings and expected.json, which ``make test`` compares with.
``make_tokenizers.py check`` trains others, with sentencepiece's own large normalizers too, converts
them and compares on random text, live.

Needs sentencepiece; nothing else in the project does.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

HERE = Path(__file__).parent / "tokenizers"

_TEXT = """
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。
何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。
吾輩はここで始めて人間というものを見た。
しかもあとで聞くとそれは書生という人間中で一番獰悪な種族であったそうだ。
この書生というのは時々我々を捕えて煮て食うという話である。
しかしその当時は何という考もなかったから別段恐しいとも思わなかった。
ただ彼の掌に載せられてスーと持ち上げられた時何だかフワフワした感じがあったばかりである。
国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。信号所に汽車が止まった。
親譲りの無鉄砲で小供の時から損ばかりしている。
小学校に居る時分学校の二階から飛び降りて一週間ほど腰を抜かした事がある。
東京は日本の首都です。東京タワーは東京にあります。今日は2024年5月1日です。
山路を登りながら、こう考えた。智に働けば角が立つ。情に棹させば流される。
The quick brown fox jumps over the lazy dog. It is a truth universally acknowledged,
that a single man in possession of a good fortune, must be in want of a wife.
Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my
purse, and nothing particular to interest me on shore, I thought I would sail about a little and
see the watery part of the world. It was the best of times, it was the worst of times, it was the
age of wisdom, it was the age of foolishness. "Don't panic!" she said; it's (only) 12345 - 678 = 9?
"""

#: A part of sentencepiece's nmt_nfkc, whose full table has 240 kB: code points, then replacements.
_RULES = """9\t20
A\t20
D\t20
A0\t20
3000\t20
200B\t
1\t
FF01\t21
FF1F\t3F
FF21\t41
FF22\t42
FF23\t43
FF41\t61
FF42\t62
FF43\t63
FF10\t30
FF11\t31
FF12\t32
337F\t682A 5F0F 4F1A 793E
304B 3099\t304C
304D 3099\t304E
65 301\tE9
FB01\t66 69
BD\t31 2044 32
FDFA\t635 644 649 20 627 644 644 647 20 639 644 64A 647 20 648 633 644 645
FF8A FF9F\t30D1
FF8A\t30CF
"""

NASTY = [
    "", " ", "  ", "   ", "a", " a", "a ", " a ", "  a  ", "a  b   c", "\n", "\t\n\r\n", "a\nb\n",
    "The quick brown fox", "It was the best of times, it was the worst of times.",
    "吾輩は猫である。", "東京は日本の首都です。", " 東京 ", "今日は 良い 天気 です",
    "漢字と😀と한국어とไทย", "😀", "😀😀", "a😀b", "👨‍👩‍👧‍👦 🏳️‍🌈 🇯🇵", "𠀀𠮷野家", "ÀÉÎ éàü ñ ß",
    "ＡＢＣ　ａｂｃ　０１２！？", "㍿", "㍿㍿です", "か\u3099き\u3099", "e\u0301", "ﬁnd ½", "ﾊﾟﾊ",
    "\ufdfa", "a\u200bb", "\u0301x", "\x00", "a\x00b", "\x01\x02", "\x7f\x1b[0m", "\ufeffbom",
    "▁", "a▁b", "▁▁ a", "a\u00a0b\u3000c", "\u2028\u2029\u0085", "\ue000\U0010ffff\ufffe",
    "\ufffd", "<unk>", "<s>", "</s>", "a</s>b", "[PAD] [CLS]x[SEP] [MASK]", "<0x41>", "<0xE3>",
    "<NL>", "a<NL>b", "a <NL> b", "<NL><NL>", "<NL", "x<NL>吾輩", "🙂<NL>🙂",
    "1234567890", "3.14 1,000", "...!!!???", "((()))[]{}", "don't DON'T", "ΑΣ ΣΑΣ İI ǅ",
    "a" * 200, "吾輩は猫である" * 20, "word " * 50, "'\"`~!@#$%^&*_-+=|\\/<>",
]  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model to train, and what the folder's settings say."""

    name: str
    train: dict[str, Any]
    settings: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    rules: str = ""


_SYMBOLS = {"pad_id": 3, "pad_piece": "[PAD]", "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}

MODELS = (
    # like rinna/japanese-gpt2-medium
    Model(
        "words",
        {"vocab_size": 420, **_SYMBOLS, "user_defined_symbols": ["<NL>"]},
        {
            "tokenizer_class": "T5Tokenizer", "do_lower_case": True, "extra_ids": 0,
            "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]",
            "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
        },
        rules=_RULES,
    ),
    # like rinna/japanese-gpt-neox-3.6b
    Model(
        "bytes",
        {
            "vocab_size": 680, "byte_fallback": True, "add_dummy_prefix": False,
            "remove_extra_whitespaces": False, "normalization_rule_name": "identity",
            "pad_id": 3, "pad_piece": "[PAD]", "user_defined_symbols": ["<NL>"],
        },
        {
            "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "unk_token": "[UNK]",
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]",
        },
    ),
)  # fmt: skip


def train(model: Model) -> bytes:
    """The model file."""
    output = io.BytesIO()
    options = {
        "unk_id": 0, "bos_id": 1, "eos_id": 2, "character_coverage": 0.98, "num_threads": 1,
        "hard_vocab_limit": False, "minloglevel": 2, **model.train,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if model.rules:
            path = Path(folder) / "rules.tsv"
            path.write_text(model.rules)
            options |= {"normalization_rule_tsv": str(path)}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_TEXT.strip().split("\n") * 3), model_writer=output, **options
        )
    return output.getvalue()


def write_folder(model: Model, folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Write the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    data = train(model)
    (folder / "spiece.model").write_bytes(data)
    text = json.dumps(model.settings, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n")
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **model.config}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def expected(processor: sentencepiece.SentencePieceProcessor, model: Model) -> list[Any]:
    """Text, ids and the ids' text, as the sentencepiece library has them."""
    lowercase = model.settings.get("do_lower_case", False)
    rows = []
    for text in NASTY:
        # transformers lower-cases letter by letter
        prepared = "".join(c.lower() for c in text) if lowercase else text
        ids = processor.encode(prepared)
        rows.append({"text": text, "ids": ids, "decoded": processor.decode(ids)})
    return rows


def _random_text(source: random.Random) -> str:
    letters = _TEXT.replace("\n", " ") + " " * 40 + "😀𠀀é한ＡＢ㍿か\u3099\u00a0\u3000\n\t▁<NL>½ΣÀ"
    text = "".join(source.choice(letters) for _ in range(source.randrange(30)))
    start = source.randrange(len(_TEXT))
    return text + _TEXT[start : start + source.randrange(60)].replace("\n", " ")


def check(n_texts: int) -> int:
    """Compare more models on random text, live; count the failures."""
    from tokenizer_folders import tokenize_all

    wide = [
        Model("bytes nmt_nfkc", {"vocab_size": 700, "byte_fallback": True,
              "user_defined_symbols": ["<NL>"]}, {}),
        Model("words nfkc_cf", {"vocab_size": 400, "normalization_rule_name": "nfkc_cf"}, {}),
        Model("words nmt_nfkc", {"vocab_size": 500, **_SYMBOLS}, {}),
        Model("across words", {"vocab_size": 500, "split_by_whitespace": False}, {}),
        Model("dummy prefix, all spaces", {"vocab_size": 400, "remove_extra_whitespaces": False},
              {}),
        Model("nfkc, no prefix", {"vocab_size": 700, "normalization_rule_name": "nfkc",
              "byte_fallback": True, "add_dummy_prefix": False,
              "remove_extra_whitespaces": False}, {}),
    ]  # fmt: skip
    failures = 0
    source = random.Random(7)
    for model in (*MODELS, *wide):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            processor = write_folder(model, folder)
            texts = NASTY + [_random_text(source) for _ in range(n_texts)]
            # special tokens in text are the caller's affair: Hugging Face's, not sentencepiece's
            got = tokenize_all(folder, texts, folder / "m.gguf", parse_special=False)
            lowercase = model.settings.get("do_lower_case", False)
            bad = []
            for text, ids in zip(texts, got, strict=True):
                prepared = "".join(c.lower() for c in text) if lowercase else text
                if processor.encode(prepared) != ids:
                    bad.append((text, processor.encode(prepared, out_type=str), ids))
            failures += len(bad)
            print(f"{'FAIL' if bad else 'ok  '} {model.name}: {len(bad)} of {len(texts)} differ")
            for text, want, ids in bad[:8]:
                print(f"    {text!r}: {want} but {[processor.id_to_piece(i) for i in ids]}")
    return failures


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("write", "check"))
    parser.add_argument("--texts", type=int, default=2000, help="random texts per model")
    arguments = parser.parse_args()
    if arguments.command == "write":
        for model in MODELS:
            processor = write_folder(model, HERE / model.name)
            rows = "[\n" + ",\n".join(
                json.dumps(row, ensure_ascii=True) for row in expected(processor, model)
            ) + "\n]\n"  # fmt: skip
            (HERE / model.name / "expected.json").write_text(rows)
            print(f"wrote {model.name}: {processor.vocab_size()} pieces")
        return
    raise SystemExit(bool(check(arguments.texts)))


if __name__ == "__main__":
    main()
