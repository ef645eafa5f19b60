"""After the shards: what needs more than one clip, the index, corpus.json and the report page."""
