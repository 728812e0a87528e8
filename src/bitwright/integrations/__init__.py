"""Bitwright inside other libraries: each module here works with the library of its name, and needs it installed."""
