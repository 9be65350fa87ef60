"""The text tokenizer of nano: byte-level BPE in which nearly every word is one token.

It knows the words of the grammar and of the task prompts; all else is spelled in bytes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mimo_edge.runtime.chat import templates
from mimo_edge.runtime.chat.text_tokenizer import QWEN2_SPLIT
from mimo_edge.scripts.checkpoint import small_tokenizer
from mimo_edge.scripts.nano import grammar
from mimo_edge.scripts.nano.sizes import BPE_SIZE, SPECIALS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_PROMPTS = ("system\n", "user\n", "assistant\n", "\n\n", "Your voice should be:")


def train_bpe() -> Tokenizer:
    """Train BPE_SIZE tokens; the same result every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Write the released tokenizer's files into `folder`, which exists."""
    files = small_tokenizer.tokenizer_files(SPECIALS)
    files["tokenizer.json"]["model"] = json.loads(train_bpe().to_str())["model"]
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _corpus() -> Iterator[str]:
    """Every word in the forms that the sentences have, and the prompts."""
    words: set[str] = set()
    for kind in grammar.kinds():
        for sentence in grammar.sentences(kind):
            for text in (sentence.text, sentence.answer or ""):
                words |= set(re.findall(r" ?[A-Za-z]+", text))
    yield from sorted(words)
    yield from (*templates.ASR_EN, *templates.TTS_EN, *_PROMPTS, *templates.ASR_ZH)
