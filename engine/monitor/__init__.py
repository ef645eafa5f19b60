"""What a run reports while it trains: metrics, throughput, validation, DualFFN balance."""
