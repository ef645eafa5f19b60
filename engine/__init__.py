"""Training engine: shards -> plan -> packs -> batches -> model -> losses -> steps -> checkpoints -> merged model."""
