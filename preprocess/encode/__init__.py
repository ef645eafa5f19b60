"""Encoding: each planned shard becomes a tar of codes and waveforms, on one machine or many."""
