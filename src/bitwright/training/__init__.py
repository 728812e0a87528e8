"""Training: from the linears that a method rounded to better ones."""
