"""Rows become clips and dialogues: a clip is encoded once, however many rows use its audio.

A row without a reference makes its clip a target whose reference is drawn in training. A row that names its
reference, or whose conversation is kept as written, adds a dialogue to the target clip. A dialogue holds its own
texts, because other rows may give the same audio another transcript.
"""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.audio.noise import Augmentation
from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected, join_some
from preprocess.common.json_file import JsonObject
from preprocess.corpus.dialogue import audios_of, canonical_dialogue, read_dialogue, reference_keys, written_dialogue
from preprocess.corpus.index_rules import KEY_PATTERN
from preprocess.corpus.text import normalise_text
from preprocess.manifest.columns import Row
from preprocess.manifest.read import Manifest


@dataclass
class ClipPlan:
    """A clip before it is encoded. `dialogues` are as read_dialogue takes them, with normalised texts.

    system_text: that of the row with the drawn reference, "" for --system-text.
    derived_from: the key of the clip of which this one is a noisy copy, made as `augmentation` says.
    """

    key: str
    source: str  # the audio's path relative to --audio-root, and which part of it
    path: str
    text: str = ""
    speaker: str = ""
    language: str | None = None
    id: str | None = None
    draws_reference: bool = False
    system_text: str = ""
    dialogues: list[JsonObject] = field(default_factory=list)
    part: tuple[Any, ...] = ()  # the fields of its Recording after the path
    derived_from: str | None = None
    augmentation: Augmentation | None = None

    @property
    def recording(self) -> Recording:
        """The audio to decode."""
        return Recording(self.path, *self.part)

    def prompt_meta(self) -> JsonObject:
        """The part of the clip's meta that `preprocess.corpus.dialogue.dialogue_of` reads."""
        own = {"system_text": self.system_text} if self.system_text else {}
        return {"text_normalised": normalise_text(self.text), "dialogues": self.dialogues, **own}


@dataclass(frozen=True)
class Use:
    """What a row became: a sample whose target is clip `key`.

    position: where its dialogue is in the clip's `dialogues`; None where the reference is drawn.
    """

    line: int
    key: str
    position: int | None = None


@dataclass
class ClipTable:
    """All clips by key, what each usable row became, and the rejected rows as (line, why).

    rows_without_speaker: how many rows name a reference and no speaker. validation: keys of the clips of
    --val-manifest, None without one.
    """

    clips: dict[str, ClipPlan]
    uses: list[Use]
    rejected: list[tuple[int, Rejected]]
    rows_without_speaker: int
    validation: set[str] | None = None


def clip_key(source: str) -> str:
    """A clip's key: the readable part of its `source`, and a hash that makes it unique."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).stem)[:60]
    key = f"{stem}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    assert KEY_PATTERN.fullmatch(key), key
    return key


def build_clips(manifest: Manifest, audio_root: Path, val_audio_root: Path | None = None) -> ClipTable:
    """The manifest's rows merged into clips. Each fact about a clip comes from the first row that has it.

    Audio paths are relative to `audio_root`, those of validation rows to `val_audio_root`. Raises InputError for
    clips that are in training and in validation.
    """
    return _Builder(manifest, audio_root, val_audio_root or audio_root).build()


class _Builder:
    def __init__(self, manifest: Manifest, audio_root: Path, val_audio_root: Path) -> None:
        self.manifest, self.audio_root, self.val_audio_root = manifest, audio_root, val_audio_root
        self.clips: dict[str, ClipPlan] = {}
        self.uses: list[Use] = []
        self.rejected: list[tuple[int, Rejected]] = []
        self.first_drawn: dict[str, Row] = {}
        self.first_dialogue: dict[tuple[str, str], Row] = {}
        self.named_by: dict[bool, dict[str, int]] = {False: {}, True: {}}  # key -> first row, of each split

    def build(self) -> ClipTable:
        # A clip's own row knows its transcript and speaker better than a row that names the clip as a reference.
        rows = sorted(self.manifest.rows, key=lambda row: not row.draws_reference)
        for row in rows:
            try:
                if row.draws_reference:
                    self._add_drawn(row)
                else:
                    self._add_dialogue(row)
            except Rejected as rejected:
                self.rejected.append((row.line, rejected))
        without_speaker = sum(row.speaker is None and not row.draws_reference for row in rows)
        used = {use.key for use in self.uses}
        used |= {k for clip in self.clips.values() for d in clip.dialogues for k in reference_keys(d, clip.key)}
        self._check_splits()
        clips = {key: self.clips[key] for key in sorted(used)}
        for key, clip in clips.items():
            clip.speaker = clip.speaker or f"unnamed-{key}"
        validation = None
        if any(file.validation for file in self.manifest.files):
            validation = used & self.named_by[True].keys()
        return ClipTable(clips, self.uses, self.rejected, without_speaker, validation)

    def _check_splits(self) -> None:
        training, validation = self.named_by[False], self.named_by[True]
        both = sorted(training.keys() & validation.keys(), key=validation.__getitem__)
        if both:
            where = self.manifest.where
            shown = [f"{self.clips[k].source} ({where(training[k])}, {where(validation[k])})" for k in both]
            found = f"{len(both)} clips that are in training too: {join_some(shown, 5)}"
            action = "Remove their rows from one of the two manifests."
            raise InputError("--val-manifest", found, "clips that are not trained on", action)

    def _clip(self, audio: Recording, row: Row) -> ClipPlan:
        """The clip of an audio that a row names, made by the first row that does."""
        validation = self.manifest.is_validation(row.line)
        path = os.path.normpath((self.val_audio_root if validation else self.audio_root) / audio.path)
        root = os.path.normpath(self.audio_root)
        name = os.path.relpath(path, root) if os.path.commonpath([path, root]) == root else path
        source = str(audio._replace(path=name))
        clip = self.clips.setdefault(clip_key(source), ClipPlan(clip_key(source), source, path, part=audio[1:]))
        assert clip.source == source, f"{clip.source} and {source} have the same key"
        self.named_by[validation].setdefault(clip.key, row.line)
        return clip

    def _fill_in(self, clip: ClipPlan, text: str, speaker: str, row: Row | None = None) -> None:
        """Give the clip what it does not have yet; `row` is one whose target it is."""
        clip.text, clip.speaker = clip.text or text, clip.speaker or speaker
        if row:
            clip.language, clip.id = clip.language or row.language, clip.id or row.id

    def _add_drawn(self, row: Row) -> None:
        where = self.manifest.where(row.line)
        if row.speaker is None:
            found = "neither speaker nor reference_audio"
            expected = "one of them: the name of the voice, or another recording of it"
            raise Rejected(
                "failed",
                "no_speaker",
                where,
                found,
                expected,
                "Fill in one of the two columns; --speaker NAME if all is one voice.",
            )
        clip = self._clip(row.audio, row)
        first = self.first_drawn.setdefault(clip.key, row)
        if first is not row:
            raise self._why_repeated(where, clip, row, first)
        self._fill_in(clip, row.text, row.speaker, row)
        clip.draws_reference, clip.system_text = True, row.system_text or ""
        self.uses.append(Use(row.line, clip.key))

    def _why_repeated(self, where: str, clip: ClipPlan, row: Row, first: Row) -> Rejected:
        """The Rejected for a row whose clip is a target with a drawn reference already, because of row `first`."""
        earlier = self.manifest.where(first.line)
        if normalise_text(row.text) != normalise_text(first.text):
            reason, expected = "other_transcript", "one transcript per recording"
            found = f"{row.audio} with other words than in {earlier}"
            action = "Listen, and keep the right one of the two rows."
        elif row.speaker != first.speaker:
            reason, expected = "other_speaker", "one speaker per recording"
            found = f"{row.audio} with speaker {row.speaker}, but {first.speaker} in {earlier}"
            action = "Keep the right one of the two rows."
        elif row.system_text != first.system_text:
            reason, expected = "other_system_text", "one system text per recording whose reference is drawn"
            found = f"{row.audio} with another system text than in {earlier}"
            action = "Keep one of the two rows, or name a reference in each."
        else:
            return self._merged(where, clip, earlier)
        return Rejected("screened", reason, where, found, expected, action)

    def _merged(self, where: str, clip: ClipPlan, earlier: str) -> Rejected:
        found = f"the same audio, text and references as {earlier}"
        action = f"Nothing to do: it is merged into clip {clip.key}."
        return Rejected("merged", "same_row", where, found, "each row once", action)

    def _add_dialogue(self, row: Row) -> None:
        where = self.manifest.where(row.line)
        target = self._clip(row.audio, row)
        references = [(self._clip(audio, row), text) for audio, text in row.references]
        dialogue = self._written(row) if row.turns else self._canonical(where, row, references)
        self._refuse_repeated(where, dialogue, target)
        identity = (target.key, json.dumps(dialogue, sort_keys=True))
        first = self.first_dialogue.setdefault(identity, row)
        if first is not row:
            raise self._merged(where, target, self.manifest.where(first.line))
        if row.turns:  # the row does not say whose voice its other audios are
            voice, others_voice = row.speaker or "", ""
        else:
            # Rows that share a reference share its voice, even where no row names the speaker.
            reference = references[0][0]
            voice = others_voice = row.speaker or reference.speaker or target.speaker or f"unnamed-{reference.key}"
        self._fill_in(target, row.text, voice, row)
        for clip, text in references:
            self._fill_in(clip, text or clip.text, others_voice)
        self.uses.append(Use(row.line, target.key, len(target.dialogues)))
        target.dialogues.append(dialogue)

    def _refuse_repeated(self, where: str, dialogue: JsonObject, target: ClipPlan) -> None:
        """Raise Rejected for a trained audio that is in the dialogue twice: the model would learn to copy it."""
        audios = audios_of(read_dialogue(dialogue, target.key, ""))
        times = Counter(audio.key for audio in audios)
        repeated = next((audio.key for audio in audios if audio.trained and times[audio.key] > 1), None)
        if repeated:
            found = f"{self.clips[repeated].source} as reference and as target"
            expected = "a reference that is another recording: else the prompt holds the answer"
            action = "Name another recording of the same voice."
            raise Rejected("failed", "reference_is_target", where, found, expected, action)

    def _canonical(self, where: str, row: Row, references: list[tuple[ClipPlan, str | None]]) -> JsonObject:
        unknown = next((clip for clip, text in references if not (text or clip.text)), None)
        if unknown:
            found = f"no transcript of the reference {unknown.source}"
            expected = "reference_text, or a row of its own for the reference"
            raise Rejected("failed", "no_reference_text", where, found, expected, "Fill in reference_text.")
        transcripts = [(clip.key, normalise_text(text or clip.text)) for clip, text in references]
        return canonical_dialogue(normalise_text(row.text), transcripts, row.system_text)

    def _written(self, row: Row) -> JsonObject:
        """The row's conversation as a dialogue. Its system text is not normalised, as --system-text is not."""
        turns = []
        for number, turn in enumerate(row.turns):
            parts = []
            for kind, part in zip(turn.kinds, turn.parts, strict=True):
                if isinstance(part, Recording):
                    parts.append((kind, self._clip(part, row).key))
                else:
                    parts.append((kind, normalise_text(part) if number else part))
            turns.append((turn.role, parts))
        return written_dialogue(turns, row.start_index)
