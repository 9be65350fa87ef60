"""What differs between the models of the family, as data: the one place that knows it.

`bundle.json` says the architecture; everything else follows from the member found by it here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mimo_edge.runtime.bundle.errors import BundleError, InputError

MIMO_AUDIO, MIMO_V25_ASR = "MiMoAudioForCausalLM", "MiMoV2ASRForCausalLM"
# a bundle of a model that only listens has none of these, unless its export was asked for them
SPEECH_PIECES = ("patch_decoder", "tokenizer_decoder", "mel_stream", "vocoder_stream")


@dataclass(frozen=True)
class Member:
    """One model of the family."""

    title: str
    tasks: tuple[str, ...] = ()  # that it was trained for; none named: all
    # language -> what stands before an answer in it; the answer is without
    languages: Mapping[str, str] = field(default_factory=dict)
    # audio is encoded in pieces of this length, each with a mel of its own; None: in segments of a
    # minute, whose mel sees the audio around it
    piece_seconds: int | None = None

    @property
    def listens_only(self) -> bool:
        """Whether none of its tasks answers with speech."""
        return bool(self.tasks)

    def check_task(self, task: str) -> None:
        """Raises InputError for a task that this model was not trained for."""
        if self.tasks and task not in self.tasks:
            raise InputError(
                f"{self.title} does {', '.join(self.tasks)} only, not {task}; "
                "use a bundle of MiMo-Audio for it"
            )

    def tag(self, language: str | None) -> str:
        """What opens an answer in `language`: a name, "auto", or None where none was asked for.

        Raises InputError for a language that the model does not know.
        """
        if language is None:
            return ""
        if not self.languages:
            raise InputError(
                f"{self.title} takes no language: it finds out by itself; leave the language out"
            )
        if language != "auto" and language not in self.languages:
            raise InputError(
                f"{self.title} knows no language {language!r}; choose one of "
                f"auto, {', '.join(self.languages)}"
            )
        return self.languages.get(language, "")


MEMBERS: Mapping[str, Member] = {
    MIMO_AUDIO: Member("MiMo-Audio"),
    MIMO_V25_ASR: Member(
        "MiMo-V2.5-ASR",
        tasks=("asr",),
        languages={"chinese": "<chinese>", "english": "<english>"},
        piece_seconds=30,
    ),
}
LANGUAGES = ("auto", "chinese", "english")  # of all members, for the command line


def member(architecture: str) -> Member:
    """The member of an architecture. Raises BundleError for an unknown one."""
    try:
        return MEMBERS[architecture]
    except (KeyError, TypeError):
        raise BundleError(
            f"the bundle is of architecture {architecture!r}, which this program does not know, "
            f"only {', '.join(MEMBERS)}. Use the version of mimo-edge that exported it."
        ) from None
