"""Speech from a trained model, and what a corpus contains, from a table of clips to single training samples."""
