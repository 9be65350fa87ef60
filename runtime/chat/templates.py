"""The instructions that the model was trained on for transcription and for reading aloud."""

import random

ASR_ZH = (
    "请将这段语音转换为文字",
    "帮我识别这个音频文件中的内容",
    "把这段录音转成文本",
    "请转录这段语音",
    "将音频内容转换成文字格式",
    "识别并转写这段语音",
    "把语音内容写成文字",
    "转录这个音频片段",
    "将这段对话转换为文本",
    "麻烦帮我把这段录音整理成详细的文字记录",
)
ASR_EN = (
    "Please transcribe this audio file",
    "Convert this speech recording to text",
    "Transcribe the following voice message",
    "Turn this audio into readable text",
    "Please convert the recording to written format",
    "Transcribe what you hear in this audio",
    "Convert this spoken content to text",
    "Please write down what is said in this recording",
    "Transcribe this voice recording",
    "Could you please help me transcribe this important recording?",
    "Would you mind converting this voice message into a readable text format?",
    "I'd really appreciate it if you could turn this audio file into a written document",
)
TTS_ZH = (
    "请将这段文字转换为语音",
    "帮我把这个文本读出来",
    "将这些文字生成音频",
    "请朗读这段内容",
    "把这段话转换成语音文件",
    "生成这段文字的语音版本",
    "请用语音播报这些内容",
    "将文本转换为可听的音频",
    "帮我朗读这段文字",
    "把这些内容念出来",
)
TTS_EN = (
    "Please convert this text to speech",
    "Turn this writing into audio",
    "Generate speech from this text",
    "Read this content out loud",
    "Convert these words to voice",
    "Create an audio version of this text",
    "Please vocalize this content",
    "Turn this text into audible format",
    "Help me convert this writing to speech",
    "Make this text into spoken audio",
)


def asr_template(rng: random.Random, language: str | None = None) -> str:
    """One transcription instruction: of either language, where that of the audio is not known.

    `random.Random(seed)` draws what upstream draws after `random.seed(seed)`.
    """
    return rng.choice({"chinese": ASR_ZH, "english": ASR_EN}.get(language or "", ASR_ZH + ASR_EN))


def tts_template(text: str, rng: random.Random) -> str:
    """One reading instruction, Chinese if `text` has any Chinese character."""
    chinese = any("\u4e00" <= char <= "\u9fff" for char in text)
    return rng.choice(TTS_ZH if chinese else TTS_EN)
