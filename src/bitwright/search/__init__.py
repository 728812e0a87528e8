"""Which layers matter, and which to keep in 16 bit. Receives callables that measure; knows no model and no data."""
