"""The registry's key: ECDSA over P-256, the kind that `model-signing` takes, too. Imports `cryptography` when used."""

import base64
import os
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, RegistryError

PRIVATE, PUBLIC = "private.pem", "public.pem"


def make_key(folder: Path) -> None:
    """Write a new pair of keys into a folder: the private one for its owner's eyes alone. What is there stays.

    Raises:
        InputError: `cryptography` is not installed. OSError: as the file system says.
    """
    _, serialization, ec = _cryptography()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / PRIVATE).exists():
        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(folder / PRIVATE, text, 0o600)
    if not (folder / PUBLIC).exists():
        key = serialization.load_pem_private_key((folder / PRIVATE).read_bytes(), None)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        _write(folder / PUBLIC, public, 0o644)


def sign(folder: Path, message: bytes) -> str:
    """The signature of a message by the private key of a folder, in base64.

    Raises:
        InputError: this user cannot read the private key; `cryptography` is not installed.
    """
    hashes, serialization, ec = _cryptography()
    try:
        text = (folder / PRIVATE).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder / PRIVATE}: {error.strerror}. Only who can read the private key may change the registry"
        ) from None
    key = serialization.load_pem_private_key(text, None)
    return base64.b64encode(key.sign(message, ec.ECDSA(hashes.SHA256()))).decode()


def is_signed(public_pem: bytes, message: bytes, signature: str) -> bool:
    """Whether a signature of a message is by the owner of a public key.

    Raises:
        InputError: `cryptography` is not installed. RegistryError: the public key is none.
    """
    hashes, serialization, ec = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        key = serialization.load_pem_public_key(public_pem)
    except ValueError:
        raise RegistryError("the registry's public key cannot be read; put public.pem back") from None
    try:
        key.verify(base64.b64decode(signature, validate=True), message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _write(path: Path, text: bytes, mode: int) -> None:
    """Write a file that nobody had; it is never readable for more people than `mode` says."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise InputError(
            "the registry signs its log, and `cryptography` is not installed; run: pip install 'bitwright[platform]'"
        ) from None
    return hashes, serialization, ec
