"""What a realtime session is set to, in OpenAI's shape."""

from typing import Annotated, Any, Literal

from mimo_edge.runtime.server.chat_request import Strict
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.speech import Seed, VoiceId
from mimo_edge.runtime.server.voice_activity import VoiceActivity
from pydantic import Field, ValidationError

_EAGERNESS = {"low": 1.2, "medium": 0.7, "auto": 0.7, "high": 0.4}  # seconds of silence


class Pcm(Strict):
    """16 bit at 24 kHz: the model's own rate."""

    type: Literal["audio/pcm"]
    rate: Literal[24000] = 24000


class Pcmu(Strict):
    """G.711 µ-law."""

    type: Literal["audio/pcmu"]


class Pcma(Strict):
    """G.711 A-law."""

    type: Literal["audio/pcma"]


Format = Annotated[Pcm | Pcmu | Pcma, Field(discriminator="type")]


class Transcription(Strict):
    """The user's speech is transcribed, too."""

    model: str | None = None
    language: str | None = None
    prompt: Literal["", None] = None


class ServerVad(Strict):
    """The server says when a turn ends, by the energy of the sound."""

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=20, le=10000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None


class SemanticVad(Strict):
    """Taken for a `ServerVad` whose silence is as long as the eagerness says."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


class Input(Strict):
    """How the user is heard."""

    format: Format = Pcm(type="audio/pcm")
    transcription: Transcription | None = None
    turn_detection: ServerVad | SemanticVad | None = Field(
        default=ServerVad(type="server_vad"), discriminator="type"
    )
    noise_reduction: None = None


class Output(Strict):
    """How the answer sounds."""

    format: Format = Pcm(type="audio/pcm")
    voice: str | VoiceId = "default"
    speed: float = Field(default=1.0, ge=1, le=1)


class Audio(Strict):
    """Both directions."""

    input: Input = Input()
    output: Output = Output()


class Session(Strict):
    """All settings; `seed` and `style` are ours: how a text that is read aloud should sound."""

    type: Literal["realtime"] = "realtime"
    model: str | None = None
    output_modalities: list[Literal["text", "audio"]] = Field(
        default=["audio"], min_length=1, max_length=1
    )
    instructions: str = ""
    audio: Audio = Audio()
    max_output_tokens: int | Literal["inf"] = "inf"
    tools: list[Any] = Field(default=[], max_length=0)
    tool_choice: Any = "auto"
    tracing: Any = None
    truncation: Any = None
    include: list[str] | None = None
    seed: Seed | None = None
    style: str | None = None

    @property
    def speaks(self) -> bool:
        """Whether answers are speech."""
        return self.output_modalities == ["audio"]

    def updated(self, change: object) -> "Session":
        """With the fields of a session.update; raises RequestError that names the field."""
        return type(self).parsed(_merged(self.model_dump(), change))

    @classmethod
    def parsed(cls, raw: object) -> "Session":
        """Raises RequestError."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(("session", *(str(part) for part in first["loc"])))
            raise RequestError(
                f"{place}: {first['msg']}", code="invalid_value", param=place
            ) from None

    def activity(self, rate: int) -> VoiceActivity | None:
        """Its detector of speech, or None where the client says when a turn ends."""
        match self.audio.input.turn_detection:
            case ServerVad() as vad:
                silence = vad.silence_duration_ms / 1000
                return VoiceActivity(rate, threshold=vad.threshold, silence=silence)
            case SemanticVad() as vad:
                return VoiceActivity(rate, silence=_EAGERNESS[vad.eagerness])
        return None

    @property
    def padding(self) -> float:
        """Seconds before the detected start of speech that belong to it."""
        vad = self.audio.input.turn_detection
        return vad.prefix_padding_ms / 1000 if isinstance(vad, ServerVad) else 0.3

    @property
    def answers_itself(self) -> bool:
        """Whether the end of a turn begins an answer."""
        vad = self.audio.input.turn_detection
        return vad is not None and vad.create_response

    @property
    def can_be_interrupted(self) -> bool:
        """Whether speech of the user ends an answer."""
        vad = self.audio.input.turn_detection
        return vad is not None and vad.interrupt_response


def _merged(old: Any, new: Any) -> Any:
    """Objects field by field, anything else as a whole; another kind of detector is a new one."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    if new.get("type", old.get("type")) != old.get("type"):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
