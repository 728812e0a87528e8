"""Files of texts to files of vectors, in many processes: `encode.encode_files`. Imports no torch."""
