"""Random but ordinary model directories: what Bitwright makes of them against what the user's own library does.

    layouts     the table of dimensions and choices; a layout is one choice of each, a plain dict, drawn by a seed
    vocabulary  small vocabularies of the kinds that tokenizers have
    directory   a layout as files: configuration and weights
    tokenizer   the same: the tokenizer's files
    sentence    the same: what sentence-transformers puts beside a model
    library     what transformers and sentence-transformers answer for a directory
    compare     Bitwright's answer beside it, and the verdict
    run         many layouts, a table, the smallest layout that still fails

`python -m tests.differential 300 --seed 0 --jobs 2` prints the table.
"""
