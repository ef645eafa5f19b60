"""Manifests: the dialects in which a corpus lists its recordings and texts, and the rows read from them."""
