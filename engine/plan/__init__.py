"""The plan of a run: which samples with which references form each pack of each global step, from the index alone."""
