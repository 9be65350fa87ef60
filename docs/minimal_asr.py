"""Transcribe with a bundle's graphs and nothing of ours: what docs/bundle.md says, as a program.

    python minimal_asr.py BUNDLE SPEECH.wav     (mono, 16 bit, at the model's rate, at most 60 s)

It needs numpy, onnxruntime and tokenizers, the last only to write ids as text.
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

MAX_NEW = 256  # patches of the answer


def main(bundle: Path, speech: Path) -> str:
    """The transcript."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 2
    model, chat = manifest["model"], manifest["chat"]

    def run(piece: str, **feed: np.ndarray) -> dict[str, np.ndarray]:
        spec = manifest["pieces"][piece]
        if piece not in sessions:
            sessions[piece] = ort.InferenceSession(str(bundle / spec["file"]))
        names = [port["name"] for port in spec["outputs"]]
        return dict(zip(names, sessions[piece].run(names, feed), strict=True))

    ort.set_default_logger_severity(3)  # it warns that this program copies the cache
    sessions: dict[str, ort.InferenceSession] = {}
    mel = run("mel", wav=read(speech, model["sampling_rate"]))["mel"]
    lengths = np.array([len(mel)])
    codes = run("tokenizer_encoder", mel=mel[None], lengths=lengths)["codes"][0, : model["n_q"]]
    text_ids, patches = prompt(codes, model, chat)

    capacity = len(text_ids) + MAX_NEW
    backbone, dtype = manifest["pieces"]["backbone"], np.dtype(manifest["cache_dtype"])
    cache_shape = (1, model["kv_heads"], capacity, model["head_dim"])
    # zeros: a masked position counts for nothing, unless it is NaN
    cache = {
        port["name"]: np.zeros(cache_shape, dtype)
        for port in backbone["inputs"]
        if port["name"].startswith(("past_keys_", "past_values_"))
    }
    past, answer = 0, list[int]()
    empty = np.array(model["empty_codes"])[:, None].repeat(model["group_size"], 1)  # [K, G]
    while len(answer) < MAX_NEW:
        new = len(text_ids)
        feed = {"text_ids": np.array([text_ids]), "codes": np.array([patches])}
        out = run(
            "backbone",
            embeddings=run("patch_encoder", **feed)["embeddings"],
            past_lengths=np.array([past]),
            new_lengths=np.array([new]),
            **cache,
        )
        cache = {name: out[name.replace("past_", "present_")] for name in cache}
        past += new
        chosen = int(out["logits"][0].argmax())  # the task's temperature is 0
        if chosen in chat["tasks"]["asr"]["stop_ids"]:
            break
        answer.append(chosen)
        text_ids, patches = [chosen], [empty]  # a text token: its patch has empty codes
    return Tokenizer.from_file(str(bundle / "tokenizer.json")).decode(answer).strip()


def prompt(codes: np.ndarray, model: dict, chat: dict) -> tuple[list[int], list[np.ndarray]]:
    """The task's parts as text ids [P] and codes, P times [K, G]."""
    group, special = model["group_size"], chat["special_ids"]
    empty = np.array(model["empty_codes"])[:, None].repeat(group, 1)  # a patch of text
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % group)), mode="edge")
    heard = [codes[:, at : at + group] for at in range(0, codes.shape[1], group)]
    text_ids, patches = list[int](), list[np.ndarray]()
    for part in chat["tasks"]["asr"]["prompts"]["plain"]:
        if "audio" in part:
            text_ids += [special["sosp"], *[special["empty"]] * len(heard), special["eosp"]]
            patches += [empty, *heard, empty]
        else:
            ids = chat["templates"]["asr"][-1]["ids"] if "ids" not in part else part["ids"]
            text_ids += ids
            patches += [empty] * len(ids)
    return text_ids, patches


def read(path: Path, rate: int) -> np.ndarray:
    """wav [N] float32."""
    with wave.open(str(path)) as file:
        form = file.getnchannels(), file.getsampwidth(), file.getframerate()
        assert form == (1, 2, rate), f"{path} must be mono, 16 bit, {rate} Hz"
        assert file.getnframes() <= 60 * rate, f"{path} is longer than 60 s"
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
