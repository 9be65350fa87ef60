"""`python -m mimo_edge.scripts.nano STAGE`: train nano. Every stage resumes where it stopped.

Stages: data, tokenizer, codes, language-model, decoder, save, evaluate, samples, plot; `all` is all
of them in turn. `utterances` writes what demo and tests are judged by (default: WORK/utterances).
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER
from mimo_edge.scripts.nano import data, plots
from mimo_edge.scripts.nano.codes import encode_clips
from mimo_edge.scripts.nano.evaluate import evaluate
from mimo_edge.scripts.nano.journal import Journal, heeding_sigterm
from mimo_edge.scripts.nano.samples import write_samples
from mimo_edge.scripts.nano.save import (
    save_audio_tokenizer,
    save_language_model,
    sharpen,
    write_checksums,
)
from mimo_edge.scripts.nano.sizes import NANO
from mimo_edge.scripts.nano.train_lm import LanguageModelRun, new_model, train_language_model
from mimo_edge.scripts.nano.train_tokenizer import (
    DECODER_STEPS,
    TokenizerRun,
    train_decoder,
    train_tokenizer,
)
from mimo_edge.scripts.nano.utterances import write_utterances

STAGES = (
    "data",
    "tokenizer",
    "codes",
    "language-model",
    "decoder",
    "save",
    "evaluate",
    "samples",
    "plot",
)
TRAINED = ("tokenizer", "language-model", "decoder")  # stop between two steps; others at once
PLAN = {  # options that are fields of the plan
    "sentences": "sentences to train on",
    "held_out": "sentences to judge by",
    "readings": "of each training sentence by all voices",
    "own_readings": "of each training sentence by nano's own voice",
    "loose": "rows of loose words to train on",
    "own_loose": "further rows of them, by nano's own voice only",
}
_SAMPLES = 8


def main(arguments: list[str] | None = None) -> int:
    """Run one stage, or all; 0 when it is done, 1 when its minutes ran out first."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for stage in STAGES if options.stage == "all" else (options.stage,):
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) / 60)
        with heeding_sigterm() if stage in TRAINED else nullcontext():
            done = run_stage(stage, options, left)
        if not done:
            print(f"{stage}: not done; the same command goes on with it", file=sys.stderr)
            return 1
    return 0


def run_stage(stage: str, options: argparse.Namespace, minutes: float | None) -> bool:
    """Returns whether the stage is done."""
    work: Path = options.work
    out: Path = options.out or work / "checkpoint"
    tokenizer = work / "checkpoint" / AUDIO_TOKENIZER
    if stage == "data":
        sizes = {name: getattr(options, name) for name in PLAN}
        data.build(work, data.Plan(**sizes, seed=options.seed), options.threads)
    elif stage == "tokenizer":
        open_steps = min(TokenizerRun().open_steps, options.tokenizer_steps // 4)
        run = TokenizerRun(options.tokenizer_steps, open_steps, seed=options.seed)
        if not train_tokenizer(work, run, minutes):
            return False
        _save_tokenizer(work, work / "checkpoint")
    elif stage == "codes":
        encode_clips(work, tokenizer, options.threads)
    elif stage == "language-model":
        lm_run = LanguageModelRun(
            options.lm_steps,
            seed=options.seed,
            bfloat16=options.bfloat16,
            compiled=options.compile,
        )
        codes = encode_clips(work, tokenizer, options.threads)
        return train_language_model(work, tokenizer, codes, lm_run, minutes)
    elif stage == "decoder":
        return train_decoder(work, TokenizerRun(options.decoder_steps, seed=options.seed), minutes)
    elif stage == "save":
        _save_tokenizer(work, out)
        _save_language_model(work, out)
        write_checksums(out)
    elif stage == "evaluate":
        print(json.dumps(evaluate(out, work, options.count), indent=2))
    elif stage == "utterances":
        write_utterances(work, options.out or work / "utterances")
    elif stage == "samples":
        write_samples(out, work, min(options.count, _SAMPLES))
    else:
        for path in plots.plot(work):
            print(path, file=sys.stderr)
    return True


def _save_tokenizer(work: Path, out: Path) -> None:
    """The best of the tokenizer's training, with the decoder's own if there is one."""
    model = AudioTokenizer(AudioTokenizerConfig.from_dict(NANO.audio_tokenizer))
    trained_on = (work / "decoder" / "best.pt").exists()
    model.load_state_dict(_best(work / ("decoder" if trained_on else "tokenizer")))
    save_audio_tokenizer(model, out)


def _save_language_model(work: Path, out: Path) -> None:
    """The best of the language model's training, sharpened, as a checkpoint."""
    model = new_model()
    model.load_state_dict(_best(work / "language_model"))
    sharpen(model)
    save_language_model(model, out)


def _best(folder: Path) -> dict[str, torch.Tensor]:
    journal = Journal(folder)
    state = journal.load("best") or journal.load()
    if state is None:
        raise SystemExit(f"{folder} holds no training yet: run its stage first")
    weights: dict[str, torch.Tensor] = state["model"]
    return weights


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mimo_edge.scripts.nano", description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all", "utterances"))
    parser.add_argument("--work", type=Path, default=Path("out/nano"), help="what training keeps")
    parser.add_argument("--out", type=Path, help="the checkpoint (default: WORK/checkpoint)")
    parser.add_argument("--minutes", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default 1)")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="multiply matrices of the language model in bfloat16: faster on processors that can",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers of the language model first: faster steps; needs a C++ compiler",
    )
    parser.add_argument("--seed", type=int, default=1)
    sizes = parser.add_argument_group("sizes")
    for name, meaning in PLAN.items():
        default = getattr(data.Plan(), name)
        option = "--" + name.replace("_", "-")
        sizes.add_argument(option, type=int, default=default, help=f"{meaning} (default {default})")
    sizes.add_argument("--tokenizer-steps", type=int, default=TokenizerRun().steps)
    sizes.add_argument("--decoder-steps", type=int, default=DECODER_STEPS)
    sizes.add_argument("--lm-steps", type=int, default=LanguageModelRun().steps)
    sizes.add_argument("--count", type=int, default=60, help="sentences per figure of evaluate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
