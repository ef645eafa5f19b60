"""Which base models can be trained here and then served by Boson's serve engine."""

from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.corpus.base_model import BaseModel, has_audio_tower, read_base_model


def read_trainable_base(folder: Path | str, flag: str = "--model") -> BaseModel:
    """As read_base_model; raises InputError also for a model that this engine or Boson's can't handle correctly."""
    base = read_base_model(Path(folder), flag)
    config, wrong = base.config, []
    if config.use_audio_out_self_attention:
        wrong.append(("use_audio_out_self_attention true", "false"))
    if config.use_rq_transformer:
        wrong.append(("use_rq_transformer true", "false"))
    if has_audio_tower(config) and not config.encode_whisper_embed:
        wrong.append(("an audio tower (skip_audio_tower false) with encode_whisper_embed false", "true"))
    if has_audio_tower(config) and config.encode_audio_in_tokens:
        wrong.append(("an audio tower with encode_audio_in_tokens true", "false"))
    if not config.use_delay_pattern:
        wrong.append(("use_delay_pattern false", "true, as the serve engine decodes it"))
    if config.audio_adapter_type == "dual_ffn_fast_forward" and 0 not in config.audio_dual_ffn_layers:
        # Boson's static cache takes its length from layer 0. If audio positions skip that layer, audio columns
        # overwrite each other in the serve engine.
        wrong.append((f"audio_dual_ffn_layers {config.audio_dual_ffn_layers} without layer 0", "layer 0 among them"))
    numbers, num_layers = config.audio_dual_ffn_layers or [], config.text_config.num_hidden_layers
    if len({*numbers}) != len(numbers) or not all(0 <= number < num_layers for number in numbers):
        wrong.append((f"audio_dual_ffn_layers {numbers}", "numbers of its layers, each once"))
    stream = {"audio_stream_bos_id": config.audio_stream_bos_id, "audio_stream_eos_id": config.audio_stream_eos_id}
    after_codes = [config.audio_codebook_size, config.audio_codebook_size + 1]
    if sorted(stream.values()) != after_codes:
        found = ", ".join(f"{name} {value}" for name, value in stream.items())
        wrong.append((found, f"{after_codes[0]} and {after_codes[1]}, the two after the codes"))
    if wrong:
        raise InputError(
            str(base.folder / "config.json"),
            "; ".join(found for found, _ in wrong),
            "; ".join(expected for _, expected in wrong),
            "Use the released base: neither this engine nor Boson's serve engine handles such a model correctly.",
        )
    return base
