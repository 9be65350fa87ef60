"""Who reads an answer in text aloud."""

from mimo_edge.runtime.generation.generation import Generation
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.prepared import Say
from mimo_edge.runtime.server.service import Service


def reader(service: Service, options: Options, voice: str, style: str | None, param: str) -> Say:
    """Reads in a voice and a style, with the seed of `options`. Raises RequestError."""
    codes = service.voices.get(voice, param)
    if style:
        check_text(style, service.limits.text, "style")
    elif codes is not None:
        raise RequestError(
            f"To read in the voice {voice[:64]!r} the model needs a style in words, such as "
            '"calm and friendly".',
            param="style",
        )
    spoken = Options(seed=options.seed, max_new=service.limits.patches)

    def say(sentence: str) -> Generation:
        return service.model.tts(sentence, instruction=style or None, voice=codes, options=spoken)

    return say
