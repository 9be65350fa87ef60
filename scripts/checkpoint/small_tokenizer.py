"""A small text tokenizer in the files of the released one: byte-level BPE with Qwen2's split."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mimo_edge.runtime.chat.text_tokenizer import QWEN2_SPLIT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BPE_SIZE = 476  # 256 bytes and 220 merges

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
THINK_SPECIALS = ("<think>", "</think>")

_TEXT = """\
The ferry leaves the harbour at seven in the morning, and the gulls follow it as far as the last
buoy. Nobody on board says much. An old man reads yesterday's paper; two children count the boats
and argue about which of them is the fastest. "That one," says the girl, "because it's red."
When the fog comes in, the captain sounds the horn three times and listens for an answer.
Please read this sentence aloud, slowly and clearly, as if you were talking to a friend.
What did the speaker say? Write down every word, with its punctuation, and nothing else.
I'm sorry, I didn't hear that. Could you say it again? We'll wait until they've finished.
The weather today is cloudy with a little rain in the north, 12 to 18 degrees, clearing later.
渡船早上七点离开港口，海鸥一直跟到最后一个浮标。船上的人都不怎么说话。一位老人在读昨天的报纸，
两个孩子在数船，争论哪一条船最快。女孩说：“那条，因为它是红色的。”
起雾的时候，船长鸣笛三声，然后听有没有回答。请把这句话慢慢地、清楚地读出来，好像在跟朋友说话。
他说了什么？请写下每一个字和标点，不要写别的。对不起，我没有听清，你可以再说一遍吗？
今天的天气多云，北方有小雨，十二到十八度，晚些时候转晴。
"""


def train_bpe(lines: Iterable[str], size: int) -> Tokenizer:
    """Train `size` tokens on text, split as Qwen2 splits; the same result every time."""
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
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def tokenizer_files(bpe: Tokenizer, specials: dict[str, int]) -> dict[str, dict[str, Any]]:
    """File name -> content of a text tokenizer whose special tokens have the ids given."""
    main = json.loads(bpe.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entries = {token: {"content": token, **flags, "special": True} for token in specials}
    main["added_tokens"] = [{"id": specials[token], **entries[token]} for token in specials]
    # `tokenizers` numbers added tokens on from the vocabulary's size, whatever the file says,
    # unless the vocabulary holds them; that is how ids beyond a gap are kept
    if min(specials.values()) != len(main["model"]["vocab"]):
        main["model"]["vocab"] |= specials
    end = {"content": "<|endoftext|>", **flags}
    return {
        "tokenizer.json": main,
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(specials[token]): entries[token] for token in specials},
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "extra_special_tokens": {},
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
        "added_tokens.json": specials,
        "special_tokens_map.json": {"eos_token": end, "pad_token": end},
    }


def write_files(folder: Path, bpe: Tokenizer, specials: dict[str, int]) -> None:
    """Write the released tokenizer's files into `folder`, which exists."""
    for name, content in tokenizer_files(bpe, specials).items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, specials: dict[str, int]) -> None:
    """Write a text tokenizer that was trained on the text above."""
    write_files(folder, train_bpe(_TEXT.splitlines(keepends=True), BPE_SIZE), specials)
