"""From the packs of a plan to batches of tensors: reading clips, building samples, laying them out."""
