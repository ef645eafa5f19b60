"""What transformers' HiggsAudioV2Processor reads beside a model: its own settings and a chat template."""

from boson_multimodal.model.higgs_audio import HiggsAudioConfig

from preprocess.common.json_file import JsonObject
from preprocess.corpus.native_layout import DELAY_TOKEN

CODEC_ID = "bosonai/higgs-audio-v2-tokenizer"
# The rate [Hz] is a constant of the processor's class.
_FEATURE_EXTRACTOR = {
    "feature_extractor_type": "DacFeatureExtractor",
    "feature_size": 1,
    "hop_length": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 24000,
}

# The tokens of Boson's prepare_chatml_sample: texts are not trimmed; of two turns of the assistant the first ends in
# <|eom_id|>.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- set parts = message['content'] %}
    {%- if parts is string %}
        {%- set parts = [{'type': 'text', 'text': parts}] %}
    {%- endif %}
    {%- for part in parts %}
        {%- if part['type'] == 'text' %}
            {{- part['text'] }}
        {%- elif message['role'] == 'assistant' %}
            {{- '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' }}
        {%- else %}
            {{- raise_exception('Audio belongs into a turn of the assistant: this model has no audio tower.') }}
        {%- endif %}
    {%- endfor %}
    {%- if message['role'] == 'assistant' and not loop.last and messages[loop.index]['role'] == 'assistant' %}
        {{- '<|eom_id|>' }}
    {%- else %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n<|audio_out_bos|>' }}
{%- endif %}
"""


def processor_config(config: HiggsAudioConfig) -> JsonObject:
    """processor_config.json, as transformers 5 saves it. The codec is named by its place on the hub."""
    return {
        "processor_class": "HiggsAudioV2Processor",
        "feature_extractor": _FEATURE_EXTRACTOR,
        "audio_tokenizer": {
            "audio_tokenizer_class": "HiggsAudioV2TokenizerModel",
            "audio_tokenizer_name_or_path": CODEC_ID,
        },
        "audio_token": config.audio_out_token,
        "audio_bos_token": config.audio_out_bos_token,
        "audio_eos_token": config.audio_eos_token,
        "audio_delay_token": DELAY_TOKEN,
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
    }
