"""Real speech without a download: espeak-ng speaks Arabic in several voices, from a pip package."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]

SENTENCES = (
    "صباح الخير، كيف حالك اليوم؟",
    "أريد أن أذهب إلى السوق في المساء.",
    "من فضلك، أعطني كوبًا من الماء.",
    "متى يصل القطار إلى المدينة؟",
    "أختي الصغيرة تحب القراءة كثيرًا.",
    "الطقس جميل اليوم والسماء صافية.",
    "سنتناول العشاء في بيت جدي.",
    "هل يمكنك أن تساعدني في حمل الحقيبة؟",
    "فتحت النافذة لأن الغرفة حارة.",
    "يعمل أبي في المستشفى القريب.",
    "نسيت المفتاح على الطاولة.",
    "سأتصل بك غدًا بعد الظهر.",
    "هذا الخبز طازج ولذيذ جدًا.",
    "الأطفال يلعبون في الحديقة.",
    "كم ثمن هذا القميص الأزرق؟",
    "تعلمت كلمات جديدة في الدرس.",
    "القهوة جاهزة، تفضل بالجلوس.",
    "تأخرت الحافلة نصف ساعة.",
    "شكرًا جزيلًا على الهدية الجميلة.",
    "نراكم قريبًا، مع السلامة.",
)

# (speaker, espeak voice, words a minute, pitch 0-99): men and women who differ in tract, pitch and pace.
VOICES = (
    ("salma", "ar+f2", 175, 60),
    ("omar", "ar+m3", 165, 35),
    ("huda", "ar+f4", 190, 75),
    ("karim", "ar+m7", 180, 45),
    ("layla", "ar+f5", 160, 50),
    ("yusuf", "ar+m1", 195, 25),
)

_SYNCHRONOUS = 2
_RATE, _PITCH = 1, 3
_CHARACTERS_UTF8 = 1


def speak(utterances: Sequence[tuple[str, str, str, int, int]]) -> None:
    """Save a WAV for each (path, text, espeak voice, words a minute, pitch).

    The same list gives the same bytes: it is spoken in a process of its own with a fixed random seed, because
    espeak-ng carries phases and random numbers over from one sentence to the next.
    """
    command = [sys.executable, "-c", "from launch.demo.arabic_speech import speak_from_stdin; speak_from_stdin()"]
    absolute = [(str(Path(path).absolute()), *how) for path, *how in utterances]
    subprocess.run(command, input=json.dumps(absolute).encode(), cwd=ROOT, check=True)


def speak_from_stdin() -> None:
    """Save the WAV files that standard input lists as JSON, in this process. Their paths are absolute."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    sample_rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0)
    if sample_rate_hz <= 0:
        raise RuntimeError(f"espeak-ng found no data in {data}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    blocks: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, num_samples, events):
        if samples and num_samples > 0:
            blocks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    for path, text, voice, words_per_minute, pitch in json.load(sys.stdin):
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(_RATE, words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        blocks.clear()
        line = text.encode() + b"\0"
        status = library.espeak_Synth(line, ctypes.c_size_t(len(line)), 0, 1, 0, _CHARACTERS_UTF8, None, None)
        if status != 0:
            raise RuntimeError(f"espeak-ng gave status {status} for {text!r}")
        library.espeak_Synchronize()
        soundfile.write(path, np.concatenate(blocks), sample_rate_hz)


def arabic_corpus(folder: Path, voices: int = 4, sentences: int = 20) -> Path:
    """Speak `sentences` sentences in each of `voices` voices; returns corpus.jsonl beside the WAV files.

    Rows are `audio` (relative to the folder), `text`, `speaker`, `language`. Voices differ in the sentences'
    order, so line n is another sentence for each.
    """
    rows, utterances = [], []
    for index, (speaker, voice, words_per_minute, pitch) in enumerate(VOICES[:voices]):
        (folder / speaker).mkdir(parents=True, exist_ok=True)
        for number in range(sentences):
            text = SENTENCES[(number + 5 * index) % len(SENTENCES)]
            name = f"{speaker}/{number:03d}.wav"
            utterances.append((str(folder / name), text, voice, words_per_minute, pitch))
            rows.append({"audio": name, "text": text, "speaker": speaker, "language": "ar"})
    speak(utterances)
    manifest = folder / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest
