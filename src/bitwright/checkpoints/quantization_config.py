"""`quantization_config` of config.json, written and read: which modules are quantized, and how.

The vocabulary is that of compressed-tensors (https://github.com/vllm-project/compressed-tensors): config groups with
targets, and a list of modules to ignore. Only keys that every release knows are written: readers refuse unknown ones.

What plain readers cannot represent changes the quant_method to "bitwright", and only there groups say more:
    "grid" in "weights"   a grid other than the uniform one
    "input_transform"     what happens to the input first: "shift", "scale" or both, in that order
    "embeddings"          beside the groups: the tables stored as int8
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from bitwright.checkpoints.module_patterns import bounded, matcher, patterns
from bitwright.checkpoints.schemes import (
    MIXED,
    WIDER,
    FloatFormat,
    Format,
    format_of,
    input_args,
    parse_float,
    parse_format,
    parse_input,
    parse_weight,
    weight_args,
)
from bitwright.errors import CheckpointError, brief
from bitwright.numerics.linear import LinearForm

_TRANSFORMS = ("shift", "scale")


class Group(NamedTuple):
    """Modules that share one scheme. `targets` are class names, module names, or "re:" and a pattern.

    stored_bits: of a code in the file, where that is not the spec's. indexed: whether an index says which group each
    column is of.
    """

    targets: tuple[str, ...]
    format: Format
    form: LinearForm
    stored_bits: int | None = None
    indexed: bool = False


class FloatGroup(NamedTuple):
    """Modules whose weights are small floats. blocks: rows and columns that share a scale, if they do. rounds_inputs:
    whether the file asks for inputs of such floats, too."""

    targets: tuple[str, ...]
    format: FloatFormat
    blocks: tuple[int, int] | None
    rounds_inputs: bool


class QuantizationConfig(NamedTuple):
    """A parsed `quantization_config`: its groups, what they leave alone, and the embedding tables stored as int8.
    scales_cache: whether it holds scales of keys and values."""

    groups: tuple[Group | FloatGroup, ...]
    ignore: tuple[str, ...]
    embeddings: tuple[str, ...]
    scales_cache: bool = False

    def group_finder(self) -> Callable[[str], Group | FloatGroup | None]:
        """A function from a linear to its group: names win over classes, as in compressed-tensors; None if ignored or
        unnamed."""
        ignored = matcher((entry, True) for entry in self.ignore)
        named = matcher((target, group) for group in self.groups for target in group.targets)
        by_class = next((group for group in self.groups if "Linear" in group.targets), None)
        return lambda module: None if ignored(module) else named(module) or by_class


def make_quantization_config(
    layers: Mapping[str, LinearForm],
    tables: Collection[str],
    ignored: Iterable[str],
    prefix: str,
    *,
    portable: bool,
) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint.

    Linears with the same scheme form a group. A single group targets the class Linear, several name their modules.
    Names match with and without the base model's prefix, because the same file loads into the base model and into a
    model with a head.

    `dequantize` makes transformers decompress while loading. Without it compressed-tensors decompresses in a hook on
    the first forward; sentence-transformers (6.2) then fails on int8 weights. While loading, transformers (5.23) takes
    every module's weight to be of the first group's scheme: it is asked for only where all are alike.

    Args:
        layers: how each quantized linear is represented, by name on disk. tables: names on disk of int8 embeddings.
        ignored: every other linear; embeddings in it do no harm.
        portable: whether plain readers can represent all of it.

    Raises:
        CheckpointError: a scheme that the format cannot say.
    """
    by_scheme: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name in sorted(layers):
        scheme = _scheme(name, layers[name])
        by_scheme.setdefault(repr(scheme), (scheme, []))[1].append(name)
    schemes = [scheme for scheme, _ in by_scheme.values()]
    formats = {scheme["format"] for scheme in schemes} or {"int-quantized"}
    groups = {}
    for i, (scheme, names) in enumerate(by_scheme.values()):
        targets = ["Linear"] if len(by_scheme) == 1 else patterns(names, prefix)
        # Older releases do not know a group's format, and infer int-quantized wherever inputs are quantized.
        inferred = len(formats) == 1 and (scheme["format"] == "int-quantized" or not scheme["input_activations"])
        groups[f"group_{i}"] = {"targets": targets, **scheme}
        if inferred:
            del groups[f"group_{i}"]["format"]
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors" if portable else "bitwright",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": patterns(ignored, prefix),
    }
    if all(
        (scheme["weights"], scheme["format"]) == (schemes[0]["weights"], schemes[0]["format"]) for scheme in schemes
    ):
        config["dequantize"] = True
    if tables:
        config["embeddings"] = {
            "targets": sorted(tables),
            "weights": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
        }
    return config


def parse_quantization_config(config: Any, where: str, *, portable: bool) -> QuantizationConfig:
    """Read a `quantization_config` of ours or of another tool's; absent keys have defaults.

    portable: whether plain readers must understand it, so that nothing of ours may occur.

    Raises:
        CheckpointError: a key of the wrong type, or a format or a scheme that this release lacks.
    """
    config = _mapping(config, where)
    for key in ("sparsity_config", "transform_config"):
        if config.get(key) and config[key] != {"format": "dense"}:
            raise CheckpointError(f"{where}: {key} is set, and this release cannot read such checkpoints")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or (not groups and portable):
        raise CheckpointError(f"{where}: config_groups is missing or empty")
    embeddings = _mapping(config.get("embeddings", {"targets": []}), f"{where}: embeddings")
    default = config.get("format", "int-quantized")
    parsed = QuantizationConfig(
        groups=tuple(_parse_group(group, default, f"{where}: {name}") for name, group in groups.items()),
        ignore=_strings(config.get("ignore") or [], f"{where}: ignore"),
        embeddings=_strings(embeddings.get("targets"), f"{where}: embeddings.targets"),
        scales_cache=bool(config.get("kv_cache_scheme")),
    )
    ours = (
        group.format == "grid-quantized" or group.form.scales_input or group.form.shifts_input
        for group in parsed.groups
        if isinstance(group, Group)
    )  # fmt: skip
    if portable and (parsed.embeddings or any(ours)):
        raise CheckpointError(
            f"{where}: quant_method is 'compressed-tensors', but the grids, transforms or tables exist only in "
            "'bitwright'"
        )
    return parsed


def _scheme(name: str, form: LinearForm) -> dict[str, Any]:
    """What a config group says of its linears."""
    transform = [word for word, has in zip(_TRANSFORMS, (form.shifts_input, form.scales_input), strict=True) if has]
    return {
        "format": format_of(form.weight, form.input),
        "weights": weight_args(name, form.weight),
        "input_activations": input_args(name, form.input),
        **({"input_transform": transform} if transform else {}),
    }


def _parse_group(group: Any, default_format: Any, where: str) -> Group | FloatGroup:
    group = _mapping(group, where)
    weights, targets = group.get("weights"), _strings(group.get("targets"), f"{where}.targets")
    if group.get("output_activations"):
        raise CheckpointError(f"{where}: the outputs are quantized, and this release cannot read such checkpoints")
    if isinstance(weights, dict) and weights.get("type") == "float":
        return FloatGroup(targets, *parse_float(weights, f"{where}.weights"), bool(group.get("input_activations")))
    transform = _strings(group.get("input_transform") or [], f"{where}.input_transform")
    if not set(transform) <= set(_TRANSFORMS):
        raise CheckpointError(
            f"{where}.input_transform: {list(transform)} is unknown; known are {', '.join(_TRANSFORMS)}"
        )
    weight = parse_weight(weights, f"{where}.weights")
    format_ = parse_format(group.get("format") or default_format, where)
    bits = weights["num_bits"] if isinstance(weights, dict) and weights.get("num_bits") in WIDER else None
    if bits is not None and format_ != "pack-quantized":
        raise CheckpointError(f"{where}: codes of {bits} bits in the format {format_!r}; they must be pack-quantized")
    if (format_ == "grid-quantized") != (weight.grid != "uniform"):
        raise CheckpointError(f"{where}: the format {format_!r} cannot hold the {weight.grid} grid")
    return Group(
        targets=targets,
        format=format_,
        form=LinearForm(
            weight,
            parse_input(group.get("input_activations"), f"{where}.input_activations"),
            scales_input="scale" in transform,
            shifts_input="shift" in transform,
        ),
        stored_bits=bits,
        indexed=isinstance(weights, dict) and weights.get("actorder") in ("group", "dynamic"),
    )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: this must be an object, but is {brief(value)}")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{where}: this must be a list of names, but is {brief(value)}")
    for item in value:
        if item.startswith("re:"):
            try:
                bounded(item)
            except CheckpointError as error:
                raise CheckpointError(f"{where}: {error}") from None
    return tuple(value)
