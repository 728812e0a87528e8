"""Model families as data, loading with validation, and pooling."""
