"""What the Wyoming server says it can do: Home Assistant asks when it is set up."""

from importlib.metadata import version
from typing import Any

from mimo_edge.runtime.server.service import Service
from wyoming.info import AsrModel, AsrProgram, Attribution, Info, TtsProgram, TtsVoice

NAME = "mimo-edge"
LANGUAGES = ["en", "zh"]  # the model was trained on
VOICE = "default"


def info_of(service: Service) -> Info:
    """Speech to text, and text to speech if the bundle speaks."""
    makers = Attribution("Xiaomi", "https://github.com/XiaomiMiMo/MiMo-Audio")
    about: dict[str, Any] = {
        "attribution": makers,
        "installed": True,
        "version": version(NAME),
    }
    model = AsrModel(name=service.name, description="MiMo-Audio", languages=[*LANGUAGES], **about)
    listens = AsrProgram(
        name=NAME,
        description="Speech recognition by MiMo-Audio",
        models=[model],
        supports_transcript_streaming=True,
        **about,
    )
    if not service.model.backend.bundle.speaks:
        return Info(asr=[listens])
    voice = TtsVoice(
        name=VOICE, description="The model's own voice", languages=[*LANGUAGES], **about
    )
    speaks = TtsProgram(
        name=NAME,
        description="Speech by MiMo-Audio",
        voices=[voice],
        supports_synthesize_streaming=True,
        **about,
    )
    return Info(asr=[listens], tts=[speaks])
