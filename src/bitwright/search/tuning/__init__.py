"""The tuner's search: which configuration to try next. It knows no model; numbers come from whoever calls it."""
