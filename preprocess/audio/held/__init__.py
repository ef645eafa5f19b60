"""How much audio the bytes of a file hold, counted from the bytes alone: no decoder's word is taken for it."""
