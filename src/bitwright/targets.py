"""What each target runtime accepts, and how many bytes a tensor takes in the checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from bitwright.errors import TargetError
from bitwright.numerics.qtensor import scale_shape
from bitwright.numerics.spec import SCHEMES, Scheme


@dataclass(frozen=True, slots=True)
class Target:
    """One runtime that loads the checkpoint.

    schemes: scheme names that it runs, or at least reads exactly. int8_embeddings: whether it reads int8 tables.
    note: what it does with the checkpoint.
    """

    schemes: frozenset[str]
    int8_embeddings: bool
    note: str


_W8A8 = frozenset({"16bit", "w8a8", "w8a8_symmetric", "w8a8_static", "w8a8_static_symmetric"})

TARGETS: dict[str, Target] = {
    "bitwright": Target(frozenset(SCHEMES), True, "integer kernels on CPU"),
    "transformers": Target(_W8A8, False, "decompresses while loading (needs compressed-tensors), then runs in float"),
    "sentence-transformers": Target(_W8A8, False, "as transformers"),
    # Symmetric 8-bit weights per channel or tensor, inputs static per tensor or dynamic per token. Linears that it
    # fuses must agree; they share an input, so a plan gives them one scheme.
    "vllm": Target(_W8A8, False, "integer kernels on CPU and GPU (compute capability below 10.0), for models it knows"),
}


def check_target(target: str, schemes: Mapping[str, str], *, int8_embeddings: bool) -> None:
    """Refuse what a target cannot load.

    Args:
        schemes: linear or table -> scheme name. The scheme "int8" stands for an int8 embedding table.

    Raises:
        TargetError: an unknown target, or a scheme or int8 tables that it does not accept.
    """
    if target not in TARGETS:
        near = get_close_matches(target, TARGETS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TargetError(f"target {target!r} is unknown{hint}; known: {', '.join(TARGETS)}")
    row = TARGETS[target]
    if int8_embeddings and not row.int8_embeddings:
        tables = [name for name, scheme in schemes.items() if scheme == "int8"]
        raise TargetError(
            f"{target}: cannot read int8 embedding tables ({', '.join(tables) or 'embeddings: int8'}); "
            f"use embeddings: 16bit, or drop {target!r} from the targets"
        )
    refused = {name: scheme for name, scheme in schemes.items() if scheme != "int8" and scheme not in row.schemes}
    if refused:
        name, scheme = next(iter(refused.items()))
        raise TargetError(
            f"{name}: {target} does not accept the scheme {scheme!r} ({len(refused)} of {len(schemes)} rows); "
            f"it accepts {', '.join(sorted(row.schemes))}"
        )


def stored_bytes(shape: tuple[int, int], scheme: Scheme, *, bias: bool, source_bytes_per_value: int) -> int:
    """Bytes that the tensors of one linear take in the checkpoint: codes, scales, zero points, bias.

    Args:
        shape: (N, K). source_bytes_per_value: 4 for a float32 source, 2 for a 16-bit one; the bias keeps it.
    """
    total = shape[0] * source_bytes_per_value if bias else 0
    if scheme.weight is None:
        return total + math.prod(shape) * 2
    n_scales = math.prod(scale_shape(*shape, scheme.weight))
    total += math.prod(shape) * scheme.weight.bits // 8 + n_scales * (4 if scheme.weight.symmetric else 5)
    if scheme.input is not None and not scheme.input.dynamic:
        total += 4 if scheme.input.symmetric else 5
    return total


def stored_embedding_bytes(shape: tuple[int, int], mode: str, *, source_bytes_per_value: int) -> int:
    """Bytes that one embedding table of shape (V, H) takes.

    Args:
        mode: "16bit", "int8" (a float32 scale per row) or "float" (as in the source).

    Raises:
        TargetError: another mode.
    """
    per_row = {"16bit": 2 * shape[1], "int8": shape[1] + 4, "float": source_bytes_per_value * shape[1]}
    if mode not in per_row:
        raise TargetError(f"embedding mode {mode!r} is unknown; known: {', '.join(per_row)}")
    return shape[0] * per_row[mode]
