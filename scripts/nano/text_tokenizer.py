"""The text tokenizer of nano: byte-level BPE in which nearly every word is one token.

It knows the words of the grammar and of the task prompts; all else is spelled in bytes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mimo_edge.runtime.chat import templates
from mimo_edge.scripts.checkpoint.small_tokenizer import train_bpe, write_files
from mimo_edge.scripts.nano import grammar
from mimo_edge.scripts.nano.sizes import BPE_SIZE, SPECIALS

_PROMPTS = ("system\n", "user\n", "assistant\n", "\n\n", "Your voice should be:")


def write_tokenizer(folder: Path) -> None:
    """Write the released tokenizer's files into `folder`, which exists."""
    write_files(folder, train_bpe(_corpus(), BPE_SIZE), SPECIALS)


def _corpus() -> Iterator[str]:
    """Every word in the forms that the sentences have, and the prompts."""
    words: set[str] = set()
    for kind in grammar.kinds():
        for sentence in grammar.sentences(kind):
            for text in (sentence.text, sentence.answer or ""):
                words |= set(re.findall(r" ?[A-Za-z]+", text))
    yield from sorted(words)
    yield from (*templates.ASR_EN, *templates.TTS_EN, *_PROMPTS, *templates.ASR_ZH)
