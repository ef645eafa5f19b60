"""Checkpoints: written, checked, found again, and compared with the run that resumes from them."""
