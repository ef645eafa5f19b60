"""Audio files: decoding exactly as Boson decodes, parts of files, Parquet, ffmpeg, and added noise."""
