"""Synthetic Arabic speech without a download: espeak-ng, from a pip package, speaks in several voices."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import numpy.typing as npt
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

# (speaker, espeak-ng voice, words per minute, pitch 0-99): men and women who differ in vocal tract, pitch and pace.
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


def save_speech(utterances: Sequence[tuple[str, str, str, int, int]]) -> None:
    """Save a WAV file for each (path, text, espeak-ng voice, words per minute, pitch).

    The same list gives the same bytes: espeak-ng runs in a new process with a fixed random seed, because it carries
    phases and random numbers over from one sentence to the next.
    """
    code = "from launch.demo import arabic_speech; arabic_speech.save_speech_from_stdin()"
    absolute = [(str(Path(path).absolute()), *rest) for path, *rest in utterances]
    subprocess.run([sys.executable, "-c", code], input=json.dumps(absolute).encode(), cwd=ROOT, check=True)


def save_speech_from_stdin() -> None:
    """Save WAV files for the utterances on standard input: JSON of what `save_speech` takes, with absolute paths."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    sample_rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0)
    if sample_rate_hz <= 0:
        raise RuntimeError(f"espeak-ng found no data in {data}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    blocks: list[npt.NDArray[np.int16]] = []

    def collect(samples: Any, num_samples: int, events: object) -> int:
        if samples and num_samples > 0:
            blocks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    callback = kind(collect)  # named, because espeak-ng does not keep it alive
    library.espeak_SetSynthCallback(callback)
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


def build_arabic_corpus(folder: Path, voices: int = 4, sentences: int = 20) -> Path:
    """Save `sentences` spoken sentences in each of `voices` voices into `folder`; returns its manifest corpus.jsonl.

    Its rows have `audio` (relative to the folder), `text`, `speaker` and `language`. Each voice has the sentences in
    another order, so file NNN.wav of one voice differs in text from that of another.
    """
    rows, utterances = [], []
    for index, (speaker, voice, words_per_minute, pitch) in enumerate(VOICES[:voices]):
        (folder / speaker).mkdir(parents=True, exist_ok=True)
        for number in range(sentences):
            text = SENTENCES[(number + 5 * index) % len(SENTENCES)]
            name = f"{speaker}/{number:03d}.wav"
            utterances.append((str(folder / name), text, voice, words_per_minute, pitch))
            rows.append({"audio": name, "text": text, "speaker": speaker, "language": "ar"})
    save_speech(utterances)
    manifest = folder / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest
