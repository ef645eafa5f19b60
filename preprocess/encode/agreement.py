"""The share of a run's codes that equal Boson's, where they are not computed in fp32 on a CPU as Boson's are."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from preprocess.codec.load import encode_waveform, load_codec
from preprocess.codec.precision import BOSON_MODE
from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.common.say import say
from preprocess.encode.local_pool import WorkerDied, run_local
from preprocess.plan.screening import screen_figures
from preprocess.plan.shard_specs import ShardSpec

_FIRST_CLIPS = 8


def measure_agreement(specs: Sequence[ShardSpec]) -> JsonObject:
    """What corpus.json records: {"precision_agreement": share of equal codes per codebook, over the first 8 clips}.

    {} where the codes are Boson's by their mode, or no clip can be read. It runs in a process of its own: this one
    must not use a GPU, since workers are forked from it.
    """
    if not specs or specs[0].mode == BOSON_MODE:
        return {}
    ((_, result),) = run_local(lambda _, progress: _encode_twice(specs, progress), [None], 1)
    if isinstance(result, WorkerDied):
        raise InputError(
            f"--device {specs[0].mode.device} --precision {specs[0].mode.precision}",
            f"a process that died over the first clips ({result.how})",
            "codes to compare with Boson's",
            "Run the same command on the CPU in fp32: it names the clip over which a worker dies.",
        )
    if result:
        mode, shares = specs[0].mode, result["equal_share_of_codebooks"]
        say(
            f"{mode.precision} on {mode.device}: codes equal to fp32 on the CPU, by codebook: "
            f"{', '.join(f'{share:.2%}' for share in shares)} "
            f"({result['clips']} clips, {result['frames']} frames)",
        )
    return {"precision_agreement": result} if result else {}


def _encode_twice(specs: Sequence[ShardSpec], progress: Callable[[float], None]) -> JsonObject:
    """Number of clips and frames, and share of equal codes per codebook; {} without a clip that can be read."""
    folders = specs[0].codec, specs[0].hubert
    theirs, ours = (load_codec(*folders, mode)[0] for mode in (BOSON_MODE, specs[0].mode.on_gpu(0)))
    equal: list[npt.NDArray[np.bool_]] = []  # per clip [codebooks, frames]
    for clip in (clip for spec in specs for clip in spec.clips):
        if len(equal) == _FIRST_CLIPS:
            break
        try:
            if clip.recording.duration_if_longer(specs[0].screening.longest_sec):
                continue
            audio = clip.recording.decode()
            screen_figures(specs[0].screening, {"duration_sec": audio.duration_sec}, str(clip.recording))
        except Rejected:
            continue
        codes, expected = (encode_waveform(codec, audio.waveform, audio.sample_rate_hz) for codec in (ours, theirs))
        equal.append(codes == expected)
        progress(audio.duration_sec)
    if not equal:
        return {}
    together = np.concatenate(equal, axis=1)
    return {
        "clips": len(equal),
        "frames": together.shape[1],
        "equal_share_of_codebooks": [round(float(share), 4) for share in together.mean(axis=1)],
    }
