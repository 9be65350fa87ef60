"""From a chat request to a generation: which task of the model it is."""

from dataclasses import dataclass

from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.chat.conversation import Audio, Message
from mimo_edge.runtime.generation.generation import Generation
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.audio_in import decoded, wav_of
from mimo_edge.runtime.server.chat_request import AudioData, ChatMessage, ChatRequest, TextPart
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.prepared import Prepared
from mimo_edge.runtime.server.reader import reader
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import voice_name
from mimo_edge.runtime.tasks import Demonstration


@dataclass(frozen=True, eq=False)
class _Turn:
    role: str
    text: str | None
    audio: Audio | None


def prepare(service: Service, request: ChatRequest, seed: int) -> Prepared:
    """The task is chosen by what the turns are made of and what is asked for; raises RequestError
    for conversations that no task of the model can answer."""
    system = _system(service, request)
    turns = [
        _turn(service, message, f"messages[{index}]")
        for index, message in enumerate(request.messages)
        if message.role in ("user", "assistant")
    ]
    options = _options(service, request, seed)
    if not turns or turns[-1].role != "user":
        raise RequestError("The last message must be the user's.", param="messages")
    if request.examples:
        return Prepared(_in_context(service, request, system, turns, options))
    if request.speaks and all(turn.audio is None for turn in turns if turn.role == "user"):
        written = _written(service, request, system, turns, options)
        voice = "default" if request.audio is None else voice_name(request.audio.voice)
        return Prepared(written, reader(service, options, voice, request.style, "audio.voice"))
    if request.speaks:
        return Prepared(_dialogue(service, request, system, turns, options))
    return Prepared(_written(service, request, system, turns, options))


def _dialogue(
    service: Service,
    request: ChatRequest,
    system: str | None,
    turns: list[_Turn],
    options: Options,
) -> Generation:
    for turn in turns:
        if turn.audio is None:
            raise RequestError(
                "A conversation in speech has the user's turns as input_audio, and the "
                "assistant's as the id of its audio.",
                param="messages",
            )
        if turn.role == "user" and turn.text is not None:
            raise RequestError(
                "A turn of a spoken dialogue has no text besides its speech.", param="messages"
            )
    voice = None if request.audio is None else voice_name(request.audio.voice)
    return service.model.dialogue(
        [Message(t.role, t.text, t.audio) for t in turns],
        system_prompt=system,
        voice=None if voice is None else service.voices.get(voice, "audio.voice"),
        options=options,
    )


def _written(
    service: Service,
    request: ChatRequest,
    system: str | None,
    turns: list[_Turn],
    options: Options,
) -> Generation:
    model, thinking, last = service.model, request.thinking, turns[-1]
    asked = [turn for turn in turns if turn.role == "user"]
    if len(turns) == 1 and last.audio is not None and (last.text or system):
        question = "\n\n".join(part for part in (system, last.text) if part)
        return model.understand(last.audio, question, thinking=thinking, options=options)
    if all(turn.audio is not None and turn.text is None for turn in asked):
        if system is not None:
            raise RequestError(
                "A spoken conversation that is answered in text has no system message.",
                param="messages",
            )
        said = [Message(t.role, t.text, t.audio if t.role == "user" else None) for t in turns]
        return model.speech_to_text(said, thinking=thinking, options=options)
    if any(turn.audio is not None for turn in asked):
        raise RequestError(
            "Turns with sound and turns in text cannot be mixed; a question about a recording is "
            "one user message with both.",
            param="messages",
        )
    said = [Message(turn.role, turn.text) for turn in turns]
    if system is not None:  # as upstream does it where a task has one: before the first turn
        said[0] = Message(said[0].role, f"{system}\n\n{said[0].text}")
    return model.chat(said, thinking=thinking, options=options)


def _in_context(
    service: Service,
    request: ChatRequest,
    system: str | None,
    turns: list[_Turn],
    options: Options,
) -> Generation:
    audio = turns[-1].audio
    if system is None or len(turns) != 1 or audio is None or turns[0].text is not None:
        raise RequestError(
            "Examples go with a system message that says what they show, and one user message of "
            "input_audio.",
            param="examples",
        )
    if not request.speaks:
        raise RequestError("Examples are answered with speech: ask for audio.", param="modalities")
    shown = [
        Demonstration(
            _wav(service, example.input_audio, f"examples[{index}].input_audio"),
            _wav(service, example.output_audio, f"examples[{index}].output_audio"),
            check_text(example.transcript, service.limits.text, f"examples[{index}].transcript"),
        )
        for index, example in enumerate(request.examples)
    ]
    return service.model.in_context(system, shown, audio, options)


def _options(service: Service, request: ChatRequest, seed: int) -> Options:
    most = service.limits.patches
    return Options(
        seed=seed,
        max_new=min(request.most or most, most),
        temperature=request.temperature,
        top_p=request.top_p,
    )


def _system(service: Service, request: ChatRequest) -> str | None:
    said = []
    for index, message in enumerate(request.messages):
        if message.role in ("system", "developer"):
            text, audio = _content(service, message, f"messages[{index}]")
            if audio is not None or text is None:
                raise RequestError("A system message is text.", param=f"messages[{index}]")
            said.append(text)
    return "\n\n".join(said) or None


def _turn(service: Service, message: ChatMessage, param: str) -> _Turn:
    text, audio = _content(service, message, param)
    if message.role == "user":
        if text is None and audio is None:
            raise RequestError("The message is empty.", param=param)
        return _Turn("user", text, audio)
    if audio is not None:
        raise RequestError("The assistant's speech is given by its id.", param=param)
    if message.audio is None:
        return _Turn("assistant", text or "", None)
    spoken = service.spoken.get(message.audio.id)
    if spoken is None:
        raise RequestError(
            "The answer of this id is not known here any more.",
            code="audio_not_found",
            param=f"{param}.audio.id",
        )
    return _Turn("assistant", spoken.text, spoken.codes)


def _content(service: Service, message: ChatMessage, param: str) -> tuple[str | None, Audio | None]:
    """The text and the sound of a message."""
    content = message.content
    if content is None:
        return None, None
    if isinstance(content, str):
        return check_text(content, service.limits.prompt, param), None
    words = [part.text for part in content if isinstance(part, TextPart)]
    sounds = [part.input_audio for part in content if not isinstance(part, TextPart)]
    if len(sounds) > 1:
        raise RequestError("A message has one recording at most; join them.", param=param)
    text = check_text("\n".join(words), service.limits.prompt, param) if words else None
    return text, _wav(service, sounds[0], param) if sounds else None


def _wav(service: Service, audio: AudioData, param: str) -> Floats:
    return wav_of(service, decoded(audio.data, param), param)
