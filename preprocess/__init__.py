"""Offline stage: manifest -> clips -> shards of codec codes and 16 kHz waveforms."""
