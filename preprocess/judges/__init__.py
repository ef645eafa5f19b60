"""Measurements of a recording: level, silence, bandwidth, speech, voice and pace."""
