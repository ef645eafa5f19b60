"""Merging an adapter into its base model, and the proof that the merge is right."""
