"""A model lowered to a flat list of fused native operators, and run in one native call per batch. Imports no torch."""
