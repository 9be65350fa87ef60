"""What a chat completion may be asked: OpenAI's fields, and a few of our own."""

from typing import Any, Literal

from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.speech import Seed, VoiceId
from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A field that is not known is refused: it would be ignored in silence."""

    model_config = ConfigDict(extra="forbid")


class AudioData(Strict):
    """A file in base64; its format is read from the file itself."""

    data: str
    format: str = "wav"


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class AudioPart(Strict):
    """Sound."""

    type: Literal["input_audio"]
    input_audio: AudioData


class AudioId(Strict):
    """An earlier spoken answer of this server."""

    id: str


class ChatMessage(BaseModel):
    """One turn. Clients send back what they were sent, so more fields than these may be there."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | AudioPart] | None = None
    audio: AudioId | None = None


class Audio(Strict):
    """How a spoken answer sounds."""

    voice: str | VoiceId = "default"
    format: Literal["wav", "mp3", "flac", "opus", "aac", "pcm16"] = "wav"


class StreamOptions(Strict):
    """What a stream holds besides."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Shown(Strict):
    """An example of what to do to speech, for the base model."""

    input_audio: AudioData
    output_audio: AudioData
    transcript: str = Field(description="Of the output.")


class ChatRequest(Strict):
    """OpenAI's fields, and at the end our own."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    model: str = ""
    modalities: list[Literal["text", "audio"]] | None = None
    audio: Audio | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: Seed | None = None
    n: int | None = 1
    stop: Any = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    logprobs: bool | None = None
    response_format: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    # said about the caller, not about the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    # ours
    thinking: bool = Field(default=False, description="The model thinks before it answers.")
    style: str | None = Field(
        default=None, description="How a text that is answered with speech is read aloud."
    )
    examples: list[Shown] = Field(
        default=[], max_length=16, description="With a system message that says what they show."
    )

    @property
    def speaks(self) -> bool:
        """Whether the answer is speech."""
        return "audio" in (self.modalities or ())

    @property
    def audio_format(self) -> str:
        """Of the spoken answer, by the name that /v1/audio/speech gives it."""
        name = "wav" if self.audio is None else self.audio.format
        return "pcm" if name == "pcm16" else name

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def most(self) -> int | None:
        """Patches of the answer at most."""
        return self.max_completion_tokens or self.max_tokens

    def check(self) -> None:
        """Refuse what the model cannot do, before any work."""
        asked = {
            "n": self.n not in (None, 1),
            "stop": bool(self.stop),
            "tools": bool(self.tools),
            "logprobs": bool(self.logprobs),
            "response_format": self.response_format not in (None, {"type": "text"}),
            "frequency_penalty": bool(self.frequency_penalty),
            "presence_penalty": bool(self.presence_penalty),
        }
        for name, value in asked.items():
            if value:
                raise RequestError(
                    f"{name} is not offered by this model; leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
        if self.speaks and self.thinking:
            raise RequestError("A spoken answer is not thought about before.", param="thinking")
        if self.speaks and self.stream and self.audio_format not in ("pcm", "mp3", "opus", "flac"):
            raise RequestError(
                "A stream of sound is pcm16, mp3, opus or flac.", param="audio.format"
            )
