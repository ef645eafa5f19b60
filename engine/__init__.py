"""Training engine: shards -> plan -> packs -> model -> losses -> steps -> checkpoints."""
