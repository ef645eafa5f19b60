"""Boson's audio tokenizer (the codec): loading it, encoding with it, and making that fast."""
