"""What each target runtime accepts, and how many bytes a tensor takes in the checkpoint."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from bitwright.errors import TargetError
from bitwright.numerics.qtensor import scale_shape
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec


@dataclass(frozen=True, slots=True)
class Target:
    """One runtime that loads the checkpoint.

    schemes: scheme names that it runs, or at least reads exactly.
    mixtures: which schemes it reads side by side. "same": those whose weights are stored alike; "symmetric": any
        without zero points in packed words; "any".
    note: what it does with the checkpoint.
    plain: whether it reads the files with a reader of its own, so that nothing of ours may be in them. ONNX graphs are
        made by us (`bitwright export`), from the codes.
    encoders: whether it runs encoders alone.
    format: whether it stands for a format that `bitwright convert` writes. What that holds is said there, once
        (`checkpoints/preflight.py`), and not by `schemes`.
    multiple: of which N and K must be multiples where codes are packed. What it fuses counts as one.
    """

    schemes: frozenset[str]
    mixtures: Literal["same", "symmetric", "any"]
    note: str
    plain: bool = True
    encoders: bool = False
    format: bool = False
    multiple: int = 1


# A scheme without a group size stands for one of those with a size (`fit_group`), and the other way round.
_PORTABLE = frozenset(
    name for name, scheme in SCHEMES.items() if scheme.weight is None or scheme.weight.grid == "uniform"
)
_W8A8 = frozenset(name for name in _PORTABLE if name.startswith("w8a8"))
# Weight-only kernels for 4 and 8 bits. Zero points are left out: not every kernel takes them. So is W4A8: it is read
# only where every 4-bit code has a byte of its own.
_WEIGHT_ONLY = frozenset(
    name for name in _PORTABLE if name.startswith(("w4a16", "w8a16")) and not name.endswith("_asym")
)

ENGINE = "engine"

TARGETS: dict[str, Target] = {
    "bitwright": Target(frozenset(SCHEMES), "any", "integer kernels on CPU", plain=False),
    # The same, but never the generic path.
    ENGINE: Target(frozenset(SCHEMES), "any", "Bitwright's engine, every operator native", plain=False),
    # While loading it decompresses with the first group's scheme for all; without that, on the first forward, it finds
    # no place for packed zero points.
    "transformers": Target(
        _PORTABLE, "symmetric", "decompresses while loading (needs compressed-tensors), then runs in float"
    ),
    # Goes around the first forward's hook, so it needs what is decompressed while loading.
    "sentence-transformers": Target(_PORTABLE, "same", "as transformers"),
    # Symmetric 8-bit weights per channel or tensor, inputs static per tensor or dynamic per token; or symmetric weights
    # alone. Linears that it fuses must agree; they share an input, so a plan gives them one scheme.
    "vllm": Target(
        frozenset({"16bit"}) | _W8A8 | _WEIGHT_ONLY,
        "any",
        "integer kernels on CPU and GPU (compute capability below 10.0), for models it knows",
        multiple=32,  # of its kernels for the CPU; those for a GPU give way to others
    ),
    # As `onnx.graph.kind_of` has it. Inputs of 4-bit weights stay float in a graph.
    "onnx": Target(
        frozenset({"16bit"} | {name for name in _PORTABLE if name.startswith(("w8a", "w4a"))}),
        "any",
        "ONNX Runtime: integer kernels on CPU, by `bitwright export`",
        plain=False,
        encoders=True,
    ),
    # Dynamic inputs it computes in float; of 4-bit weights it does not say what it does.
    "openvino": Target(
        frozenset({"16bit"} | {name for name in _W8A8 if "static" in name}),
        "any",
        "integer kernels on CPU, by `bitwright export`",
        plain=False,
        encoders=True,
    ),
    **{
        name: Target(frozenset(SCHEMES), "any", f"{what}, by `bitwright convert --to {name}`", plain=False, format=True)
        for name, what in (
            ("gptq", "readers of GPTQ"),
            ("awq", "readers of AutoAWQ"),
            ("bitnet", "transformers' BitNet"),
            ("gguf", "llama.cpp"),
        )
    },
}


def check_names(targets: Collection[str]) -> None:
    """Raises:
    TargetError: a name of no target.
    """
    for target in targets:
        if target not in TARGETS:
            near = get_close_matches(target, TARGETS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TargetError(f"target {target!r} is unknown{hint}; known: {', '.join(TARGETS)}")


def check_target(
    target: str,
    schemes: Mapping[str, str],
    *,
    int8_embeddings: bool,
    transformed: Collection[str] = (),
    experts: Collection[str] = (),
    transposed: Collection[str] = (),
    heads: Collection[str] = (),
    needs_weights: bool = False,
) -> None:
    """Refuse what a target cannot load.

    Args:
        schemes: linear or table -> scheme name. The scheme "int8" stands for an int8 embedding table.
        transformed: linears with an input transform.
        experts: linears of experts, which transformers stacks. transposed: linears that transformers keeps as (K, N).
        heads: linears that read one vector per text.
        needs_weights: as the family's row says.

    Raises:
        TargetError: an unknown target, or something that it does not accept: what, and what it would take instead.
    """
    check_names([target])
    row = TARGETS[target]
    if row.plain and int8_embeddings:
        tables = [name for name, scheme in schemes.items() if scheme == "int8"]
        raise TargetError(
            f"{target} cannot read int8 embedding tables ({', '.join(tables) or 'embeddings: int8'}); use "
            "embeddings: 16bit"
        )
    refused = {name: scheme for name, scheme in schemes.items() if scheme != "int8" and scheme not in row.schemes}
    if refused:
        name, scheme = next(iter(refused.items()))
        raise TargetError(
            f"{name}: {target} does not accept the scheme {scheme!r} of {len(refused)} of {len(schemes)} layers; it "
            f"accepts {', '.join(sorted(row.schemes))}"
        )
    if not row.plain:
        return
    quantized = {name: s for name, s in schemes.items() if s != "int8" and SCHEMES[s].weight is not None}
    packed = [name for name, scheme in quantized.items() if _is_packed(SCHEMES[scheme])]
    for names, what in (
        (
            packed if needs_weights and target != "vllm" else (),
            "transformers changes this family's weights while loading, and cannot do that with packed codes; use w8a8",
        ),
        (transformed, "its method transforms the input, which the format cannot store; use another method"),
        (transposed, "transformers keeps its weight transposed, and cannot load codes for it; keep it in 16bit"),
        # compressed-tensors takes one scale for the whole batch there: one text would change another's result.
        (heads, f"{target} would quantize its 2-D input as one tensor and not text by text; keep heads in 16bit"),
    ):
        if found := [name for name in names if name in quantized]:
            more = f" and {len(found) - 1} more linears" if len(found) > 1 else ""
            raise TargetError(f"{found[0]}{more}: {what}")
    _check_mixture(target, row, quantized)
    _check_experts(target, quantized, experts)


def check_shapes(target: str, schemes: Mapping[str, str], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse linears whose packed codes a target cuts otherwise.

    Args:
        shapes: (N, K) of each linear as the target holds it: N of all that it fuses with this one.

    Raises:
        TargetError: N or K is not such a multiple.
    """
    row = TARGETS[target]
    for name, (n, k) in shapes.items():
        if _is_packed(SCHEMES[schemes[name]]) and (n % row.multiple or k % row.multiple):
            raise TargetError(
                f"{name}: N, K = {[n, k]}, and {target} takes packed codes only in multiples of {row.multiple}; keep "
                "it in 16bit, or use w8a8"
            )


def _check_mixture(target: str, row: Target, quantized: Mapping[str, str]) -> None:
    """Refuse schemes that a target does not read side by side."""
    if row.mixtures == "any" or len({_stored_as(scheme) for scheme in quantized.values()}) < 2:
        return
    asymmetric = [name for name, scheme in quantized.items() if scheme.endswith("_asym")]
    if row.mixtures == "same" or asymmetric:
        name = asymmetric[0] if row.mixtures == "symmetric" else next(iter(quantized))
        others = ", ".join(sorted(set(quantized.values()) - {quantized[name]}))
        raise TargetError(f"{name}: {target} cannot read {quantized[name]!r} beside {others}; use one scheme")


def _check_experts(target: str, quantized: Mapping[str, str], experts: Collection[str]) -> None:
    """Refuse what transformers cannot stack. It unpacks experts only if all are packed, symmetric, and like everything
    else that is quantized; and where anything is quantized it takes experts to be.
    """
    floats = [name for name in experts if name not in quantized]
    if not quantized or not experts or (target == "vllm" and len(floats) == len(experts)):
        return
    wrong = floats or [name for name, s in quantized.items() if s.endswith("_asym") or not _is_packed(SCHEMES[s])]
    if wrong or len({_stored_as(scheme) for scheme in quantized.values()}) > 1:
        name = wrong[0] if wrong else next(iter(quantized))
        raise TargetError(
            f"{name} ({quantized.get(name, '16bit')}): {target} reads a mixture of experts only if all quantized "
            "layers have the same symmetric scheme with packed weights. Use one such as w4a16 or w8a16"
        )


def _is_packed(scheme: Scheme) -> bool:
    """Whether several codes share a word or a byte: all but 8-bit ones with quantized inputs."""
    weight = scheme.weight
    return weight is not None and (weight.grid != "uniform" or weight.bits < 8 or scheme.input is None)


def _stored_as(name: str) -> tuple[bool, QuantSpec | None]:
    return _is_packed(SCHEMES[name]), SCHEMES[name].weight


def stored_bytes(
    shape: tuple[int, int],
    scheme: Scheme,
    *,
    bias: bool,
    source_bytes_per_value: int,
    scale_K: bool = False,
    shift_K: bool = False,
) -> int:
    """Bytes that the tensors of one linear take in the checkpoint: codes, scales, zero points, levels of a codebook,
    the input's static range and transform, bias.

    Args:
        shape: (N, K). source_bytes_per_value: 4 for a float32 source, 2 for a 16-bit one; the bias keeps it.
        scale_K, shift_K: whether the input is scaled and shifted before it is quantized.
    """
    n, k = shape
    weight = scheme.weight
    total = n * source_bytes_per_value if bias else 0
    if weight is None:
        return total + n * k * 2
    n_groups = math.prod(scale_shape(n, k, weight))
    total += n_groups * 4
    if not _is_packed(scheme):
        total += n * k
    else:
        unit = 32 if weight.grid == "uniform" else 8
        total += n * math.ceil(k * weight.bits / unit) * unit // 8 + 16  # N and K are stored too
    if not weight.symmetric:
        words = math.ceil(n * weight.bits / 32) * (n_groups // n)
        total += words * 4 if _is_packed(scheme) and not weight.per_tensor else n_groups
    if weight.has_codebook:
        total += (weight.code_max + 1) * 4
    if scheme.input is not None and not scheme.input.dynamic:
        total += 4 if scheme.input.symmetric else 5
    return total + 4 * k * (scale_K + shift_K)


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
