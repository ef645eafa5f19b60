"""Planning: which clips and dialogues the rows become, how each clip is screened, and which shard it goes to."""
