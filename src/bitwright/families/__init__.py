"""One row of data per model family, read by the quantizer and by the engine alike. Imports neither torch nor numpy."""
