"""Describes this machine and its libraries, for the Record and for `bitwright doctor`."""

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch

import bitwright
from bitwright.kernels import dispatch, torch_threads

# Optional runtimes and readers: package -> what it is for.
OPTIONAL = {
    "compressed-tensors": "transformers reads our checkpoints with it",
    "sentence-transformers": "SentenceTransformer(DIR)",
    "vllm": "serving",
    "onnx": "`bitwright export`",
    "onnxruntime": "runs exported graphs; compared in `bitwright bench`",
    "openvino": "runs exported graphs; compared in `bitwright bench`",
    "nncf": "quantizes for OpenVINO in `bitwright bench`",
    "datasets": "--data org/name",
    "pyarrow": "--data file.parquet, and files of vectors",
    "ray": "`bitwright encode --ray`",
}


def environment() -> dict[str, Any]:
    """Processor, instruction set in use, operating system, versions, threads: plain data."""
    torch_threads.settle()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "isa": dispatch.active_isa(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "tokenizers": version_of("tokenizers"),
        "sentence_transformers": version_of("sentence-transformers"),
        "bitwright": bitwright.__version__,
        "threads": torch.get_num_threads(),
    }


def version_of(package: str) -> str | None:
    """Version of an installed package, None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as it reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.lower().startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
