"""How many codes of a run are Boson's, where it computes them in another way than Boson does on a CPU."""

from collections.abc import Callable, Sequence

import numpy as np

from preprocess.codec.load import encode, load_codec
from preprocess.codec.precision import BOSON_MODE
from preprocess.common.errors import InputError, Rejected
from preprocess.encode.local_pool import WorkerDied, run_local
from preprocess.plan.screening import screen
from preprocess.plan.shard_specs import ShardSpec

_FIRST_CLIPS = 8


def measure_agreement(specs: Sequence[ShardSpec]) -> dict:
    """For corpus.json: the share of equal codes, by codebook, over the plan's first clips; {} where all are Boson's.

    In a process of its own: this one must not touch a GPU, since workers are forked from it.
    """
    if not specs or specs[0].mode == BOSON_MODE:
        return {}
    ((_, result),) = run_local(lambda _, progress: _compare(specs, progress), [None], 1)
    if isinstance(result, WorkerDied):
        raise InputError(
            f"--device {specs[0].mode.device} --precision {specs[0].mode.precision}",
            f"a process that died over the first clips ({result.how})",
            "codes to compare with Boson's",
            "Run the same command on the CPU in fp32: it names a clip that ends its worker.",
        )
    if result:
        mode, shares = specs[0].mode, result["equal_share_of_codebooks"]
        print(
            f"{mode.precision} on {mode.device}: codes equal to fp32 on the CPU, by codebook: "
            f"{', '.join(f'{share:.2%}' for share in shares)} "
            f"({result['clips']} clips, {result['frames']} frames)",
            flush=True,
        )
    return {"precision_agreement": result} if result else {}


def _compare(specs: Sequence[ShardSpec], progress: Callable[[float], None]) -> dict:
    folders = specs[0].codec, specs[0].hubert
    theirs, ours = (load_codec(*folders, mode)[0] for mode in (BOSON_MODE, specs[0].mode.on_gpu(0)))
    equal = []
    for spec in specs:
        for clip in spec.clips:
            try:
                if clip.recording.longer_than(spec.screening.longest_sec):
                    continue
                audio = clip.recording.decode()
                screen(spec.screening, {"duration_sec": audio.duration_sec}, str(clip.recording))
            except Rejected:
                continue
            codes, expected = (encode(codec, audio.waveform, audio.sample_rate_hz) for codec in (ours, theirs))
            equal.append(codes == expected)
            progress(audio.duration_sec)
            if len(equal) == _FIRST_CLIPS:
                return _shares(equal)
    return _shares(equal) if equal else {}


def _shares(equal: list[np.ndarray]) -> dict:
    """Of bool [codebooks, frames] of each clip."""
    together = np.concatenate(equal, axis=1)
    return {
        "clips": len(equal),
        "frames": together.shape[1],
        "equal_share_of_codebooks": [round(float(share), 4) for share in together.mean(axis=1)],
    }
