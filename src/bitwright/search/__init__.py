"""Finds the layers that matter, and those to keep in 16 bit. It gets functions that measure, and knows no model."""
