"""Signatures of versions that other tools can check: `model-signing` with the registry's key. Imported when used."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, RegistryError
from bitwright.registry.keys import PRIVATE

_ABSENT = "model-signing is not installed; run: pip install 'bitwright[platform]'"


def sign_directory(directory: Path, signature: Path, key: Path) -> bool:
    """Sign every file of a directory. Whether it was done: not where `model-signing` is not installed.

    key: the folder of the registry's key.
    """
    if not installed():
        return False
    from model_signing import signing

    config: Any = signing.Config
    config().use_elliptic_key_signer(private_key=key / PRIVATE).sign(directory, signature)
    return True


def check_signature(directory: Path, signature: Path, public_key: Path) -> None:
    """Check that a directory is what the owner of a key signed.

    Raises:
        InputError: `model-signing` is not installed. RegistryError: the files are not those that were signed, or
            another key signed them.
    """
    if not installed():
        raise InputError(_ABSENT)
    from model_signing import verifying

    try:
        config: Any = verifying.Config
        config().use_elliptic_key_verifier(public_key=public_key).verify(directory, signature)
    except Exception as error:  # its errors have no common kind
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise RegistryError(f"{directory}: the signature {signature.name} does not match: {said}") from None


def installed() -> bool:
    """Whether `model-signing`, and what it imports without saying so, is here."""
    return find_spec("model_signing") is not None and find_spec("OpenSSL") is not None
