"""Property tests here are deterministic: the same examples on every machine, and no example database."""

from hypothesis import settings

settings.register_profile("numerics", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("numerics")
