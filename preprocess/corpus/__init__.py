"""What a corpus is: the format of its shards, its dialogues and texts, where it is stored, how it is verified."""
