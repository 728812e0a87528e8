"""Embed a corpus in many processes, and search in it: python examples/encode_corpus.py DIR CORPUS QUESTION

The corpus is a file, or a folder, of texts. The vectors stay in CORPUS.vectors: another question takes them from there.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import bitwright


def main() -> None:
    """Show the numbers of the texts that are nearest to the question."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("directory", "corpus", "question"):
        parser.add_argument(name)
    asked = parser.parse_args()
    out = Path(f"{asked.corpus}.vectors")
    command = ["encode", asked.directory, "--data", asked.corpus, "--format", "npy", "--normalize", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "bitwright", *command, "--quiet"], check=True)

    model: Any = bitwright.load(asked.directory)
    question = model.encode_query([asked.question], normalize_embeddings=True)[0]
    parts = [np.load(part, mmap_mode="r") for part in sorted(out.glob("part-*.npy"))]
    scores = np.concatenate([part @ question for part in parts])  # a part at a time is in memory
    for number in np.argsort(-scores)[:3]:
        print(f"{scores[number]:.3f}  text {number}")


if __name__ == "__main__":
    main()
