"""Rows become clips and dialogues: a clip is encoded once, however many rows use its audio.

A row without a reference makes its clip a target whose reference is drawn in training. A row that names its
reference, or whose conversation is kept as written, makes a dialogue of the target clip; the texts stand in the
dialogue, because other rows may give the same audio other words.
"""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.audio.noise import Augmentation
from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected
from preprocess.corpus.dialogue import audios_of, canonical_dialogue, read_dialogue, reference_keys, written_dialogue
from preprocess.corpus.shards import KEY_PATTERN
from preprocess.corpus.text import normalise_text
from preprocess.manifest.columns import Row
from preprocess.manifest.read import Manifest


@dataclass
class ClipPlan:
    """A clip before it is encoded. `dialogues` are in the form that read_dialogue takes, normalised.

    system_text: what the row with the drawn reference has in place of --system-text, "" where it has none.
    derived_from: the key of the clip that this one is a copy of, made noisy as `augmentation` says.
    """

    key: str
    source: str  # the audio's name under the audio root, and which part of it
    path: str
    text: str = ""
    speaker: str = ""
    language: str | None = None
    id: str | None = None
    draws_reference: bool = False
    system_text: str = ""
    dialogues: list[dict] = field(default_factory=list)
    part: tuple = ()  # the fields of its Recording after the path
    derived_from: str | None = None
    augmentation: Augmentation | None = None

    @property
    def recording(self) -> Recording:
        return Recording(self.path, *self.part)

    def prompt_meta(self) -> dict:
        """The part of the clip's meta that `preprocess.corpus.dialogue.dialogue_of` reads."""
        own = {"system_text": self.system_text} if self.system_text else {}
        return {"text_normalised": normalise_text(self.text), "dialogues": self.dialogues, **own}


@dataclass(frozen=True)
class Use:
    """What a row is in the corpus: clip `key` as a target, with a drawn reference or by its dialogue's position."""

    line: int
    key: str
    position: int | None = None


@dataclass
class ClipTable:
    """All clips by key, what each usable row became, the other rows, and how many rows came without a speaker.

    validation: keys of the clips of --val-manifest, None without one.
    """

    clips: dict[str, ClipPlan]
    uses: list[Use]
    rejected: list[tuple[int, Rejected]]
    rows_without_speaker: int
    validation: set[str] | None = None


def clip_key(source: str) -> str:
    """A clip's key, from its audio's name under the root alone: readable, and told apart by a hash."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).stem)[:60]
    key = f"{stem}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    assert KEY_PATTERN.fullmatch(key), key
    return key


def build_clips(manifest: Manifest, audio_root: Path, val_audio_root: Path | None = None) -> ClipTable:
    """Merge the manifest's rows into clips. The first row that says something of a clip is right.

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
        self.first_dialogue: dict[tuple, Row] = {}
        self.named_by: dict[bool, dict[str, int]] = {False: {}, True: {}}  # key -> first row, of each split

    def build(self) -> ClipTable:
        named = [row for row in self.manifest.rows if row.references or row.turns]
        drawn = [row for row in self.manifest.rows if not (row.references or row.turns)]
        # A row that is about a clip itself knows its words and speaker better than one that names it as reference.
        for add, rows in ((self._add_drawn, drawn), (self._add_named, named)):
            for row in rows:
                try:
                    add(row)
                except Rejected as rejected:
                    self.rejected.append((row.line, rejected))
        without_speaker = sum(row.speaker is None for row in named)
        used = {use.key for use in self.uses}
        used |= {k for clip in self.clips.values() for d in clip.dialogues for k in reference_keys(d, clip.key)}
        self._check_splits()
        clips = {key: self.clips[key] for key in sorted(used)}
        for key, clip in clips.items():
            clip.speaker = clip.speaker or f"unnamed-{key}"
        has_validation = any(file.validation for file in self.manifest.files)
        validation = used & self.named_by[True].keys() if has_validation else None
        return ClipTable(clips, self.uses, self.rejected, without_speaker, validation)

    def _check_splits(self) -> None:
        training, validation = self.named_by[False], self.named_by[True]
        both = sorted(training.keys() & validation.keys(), key=validation.__getitem__)
        if both:
            where = self.manifest.where
            shown = [f"{self.clips[k].source} ({where(training[k])}, {where(validation[k])})" for k in both[:5]]
            raise InputError(
                "--val-manifest",
                f"{len(both)} clips that are in training too: {', '.join(shown)}{', ...' * (len(both) > 5)}",
                "clips that training never hears",
                "Remove their rows from one of the two manifests.",
            )

    def _clip(self, audio: Recording, row: Row) -> ClipPlan:
        validation = self.manifest.is_validation(row.line)
        path = os.path.normpath((self.val_audio_root if validation else self.audio_root) / audio.path)
        root = os.path.normpath(self.audio_root)
        name = os.path.relpath(path, root) if os.path.commonpath([path, root]) == root else path
        source = str(audio._replace(path=name))
        clip = self.clips.setdefault(clip_key(source), ClipPlan(clip_key(source), source, path, part=audio[1:]))
        assert clip.source == source, f"{clip.source} and {source} have the same key"
        self.named_by[validation].setdefault(clip.key, row.line)
        return clip

    def _describe(self, clip: ClipPlan, text: str, speaker: str, row: Row | None = None) -> None:
        clip.text, clip.speaker = clip.text or text, clip.speaker or speaker
        if row:
            clip.language, clip.id = clip.language or row.language, clip.id or row.id

    def _add_drawn(self, row: Row) -> None:
        where = self.manifest.where(row.line)
        if row.speaker is None:
            raise Rejected(
                "failed",
                "no_speaker",
                where,
                "neither speaker nor reference_audio",
                "one of them: whose voice is it, or which recording shows it",
                "Fill in one of the two columns.",
            )
        clip = self._clip(row.audio, row)
        first = self.first_drawn.setdefault(clip.key, row)
        if first is not row:
            raise self._again(where, clip, row, first)
        self._describe(clip, row.text, row.speaker, row)
        clip.draws_reference, clip.system_text = True, row.system_text or ""
        self.uses.append(Use(row.line, clip.key))

    def _again(self, where: str, clip: ClipPlan, row: Row, first: Row) -> Rejected:
        earlier = self.manifest.where(first.line)
        if normalise_text(row.text) != normalise_text(first.text):
            return Rejected(
                "screened",
                "other_transcript",
                where,
                f"{row.audio} with other words than in {earlier}",
                "one transcript for one recording",
                "Listen, and keep the right one of the two rows.",
            )
        if row.speaker != first.speaker:
            return Rejected(
                "screened",
                "other_speaker",
                where,
                f"{row.audio} with speaker {row.speaker}, but {first.speaker} in {earlier}",
                "one speaker for one recording",
                "Keep the right one of the two rows.",
            )
        if row.system_text != first.system_text:
            return Rejected(
                "screened",
                "other_system_text",
                where,
                f"{row.audio} with another system text than in {earlier}",
                "one system text for a recording whose reference is drawn",
                "Keep one of the two rows, or name a reference in each.",
            )
        return self._merged(where, clip, earlier)

    def _merged(self, where: str, clip: ClipPlan, earlier: str) -> Rejected:
        return Rejected(
            "merged",
            "same_row",
            where,
            f"the same audio, text and references as {earlier}",
            "each row once",
            f"Nothing to do: it is merged into clip {clip.key}.",
        )

    def _add_named(self, row: Row) -> None:
        where = self.manifest.where(row.line)
        target = self._clip(row.audio, row)
        references = [(self._clip(audio, row), text) for audio, text in row.references]
        dialogue = self._written(row) if row.turns else self._canonical(where, row, references)
        self._refuse_repeated(where, dialogue, target)
        identity = (target.key, json.dumps(dialogue, sort_keys=True))
        first = self.first_dialogue.setdefault(identity, row)
        if first is not row:
            raise self._merged(where, target, self.manifest.where(first.line))
        if row.turns:  # who else speaks there the row does not say
            voice, others_voice = row.speaker or "", ""
        else:
            # Rows that share a reference share its voice, even where no row names the speaker.
            shown = references[0][0]
            voice = others_voice = row.speaker or shown.speaker or target.speaker or f"unnamed-{shown.key}"
        self._describe(target, row.text, voice, row)
        for clip, text in references:
            self._describe(clip, text or clip.text, others_voice)
        self.uses.append(Use(row.line, target.key, len(target.dialogues)))
        target.dialogues.append(dialogue)

    def _refuse_repeated(self, where: str, dialogue: dict, target: ClipPlan) -> None:
        """Raise Rejected for an audio that is trained and stands in the dialogue once more: it would be copied."""
        audios = audios_of(read_dialogue(dialogue, target.key, ""))
        times = Counter(audio.key for audio in audios)
        repeated = next((audio.key for audio in audios if audio.trained and times[audio.key] > 1), None)
        if repeated:
            raise Rejected(
                "failed",
                "reference_is_target",
                where,
                f"{self.clips[repeated].source} as reference and as target",
                "a reference that is another recording: else the answer stands in the prompt",
                "Name another recording of the same voice.",
            )

    def _canonical(self, where: str, row: Row, references: list[tuple[ClipPlan, str | None]]) -> dict:
        unknown = next((clip for clip, text in references if not (text or clip.text)), None)
        if unknown:
            raise Rejected(
                "failed",
                "no_reference_text",
                where,
                f"no transcript of the reference {unknown.source}",
                "reference_text, or a row of its own for the reference",
                "Fill in reference_text.",
            )
        transcripts = [(clip.key, normalise_text(text or clip.text)) for clip, text in references]
        return canonical_dialogue(normalise_text(row.text), transcripts, row.system_text)

    def _written(self, row: Row) -> dict:
        """The row's turns; the system text stays as it is, as --system-text does."""
        system, *turns = row.turns
        read = [(role, [(k, normalise_text(c) if k == "text" else c) for k, c in parts]) for role, parts in turns]
        keyed = [
            (role, [(kind, self._clip(part, row).key if kind == "audio" else part) for kind, part in parts])
            for role, parts in (system, *read)
        ]
        return written_dialogue(keyed, row.start_index)
