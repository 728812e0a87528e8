"""Results of a fleet become versions of a registry, to be promoted by whoever decides that."""

from hashlib import sha256
from pathlib import Path

from bitwright.registry.add import add, manifest_of
from bitwright.registry.store import make_registry, read_models


def add_result(root: Path, name: str, result: Path) -> int:
    """Add a result as the next version of a model, and return its number. One that is the newest version already, as
    after a kill, is not added again.

    Raises:
        BitwrightError: the registry is locked, or is none. OSError: it cannot be written.
    """
    registry = make_registry(root)
    model = read_models(registry, name).get(name)
    if model is not None and model.versions:
        newest = max(model.versions)
        if model.versions[newest].content == sha256(manifest_of(result).encode()).hexdigest():
            return newest
    return add(registry, result, name).number
