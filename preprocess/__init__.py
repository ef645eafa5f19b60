"""Offline stage: manifest -> clips -> shards of codec codes and 16 kHz waveforms."""

import os

# Models are folders: no command asks a hub for anything. huggingface_hub reads this when it is imported, and every
# command imports this package before it.
os.environ["HF_HUB_OFFLINE"] = "1"
