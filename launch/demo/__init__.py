"""`make demo`: the whole pipeline on small random models, and the makers of these models, which tests use too."""
