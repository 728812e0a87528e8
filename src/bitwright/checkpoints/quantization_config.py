"""`quantization_config` of config.json, written and read: which modules are quantized, and how.

The vocabulary is that of compressed-tensors (https://github.com/vllm-project/compressed-tensors): config groups with
targets, and a list of modules to ignore. Only keys that every release knows are written: readers refuse unknown ones.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.checkpoints.stored import StoredLinear
from bitwright.errors import CheckpointError
from bitwright.numerics.spec import QuantSpec

PORTABLE = "compressed-tensors"
OURS = "bitwright"  # what plain readers cannot represent
FORMAT = "int-quantized"


@dataclass(frozen=True, slots=True)
class Group:
    """Modules that share one scheme. `targets` are class names, module names, or "re:" and a pattern."""

    targets: tuple[str, ...]
    weight: QuantSpec
    input: QuantSpec


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """A parsed `quantization_config`: its groups, what they leave alone, and the embedding tables stored as int8."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    embeddings: tuple[str, ...] = ()

    def group_of(self, module: str) -> Group | None:
        """The group of a linear: names win over classes, as in compressed-tensors. None if ignored or unnamed."""
        if any(_names(entry, module) for entry in self.ignore):
            return None
        named = (group for group in self.groups if any(_names(target, module) for target in group.targets))
        by_class = (group for group in self.groups if "Linear" in group.targets)
        return next(named, next(by_class, None))


def make_quantization_config(
    layers: Mapping[str, StoredLinear], tables: Collection[str], ignored: Iterable[str], prefix: str
) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint.

    Linears with the same scheme form a group. A single group targets the class Linear, several name their modules.
    Names match with and without the base model's prefix, because the same file loads into the base model and into a
    model with a head. int8 embedding `tables`, which plain readers cannot represent, change the quant_method.

    `dequantize` makes transformers decompress while loading. Without it compressed-tensors decompresses in a hook on
    the first forward; sentence-transformers (6.2) then fails on int8 weights.

    Args:
        layers: the quantized linears. tables: names on disk of the int8 embedding tables.
        ignored: every other linear; embeddings in it do no harm.

    Raises:
        CheckpointError: a scheme that the format cannot say.
    """
    by_scheme: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name in sorted(layers):
        scheme = {"weights": _weight_args(name, layers[name]), "input_activations": _input_args(name, layers[name])}
        by_scheme.setdefault(repr(scheme), (scheme, []))[1].append(name)
    groups = {}
    for i, (scheme, names) in enumerate(by_scheme.values()):
        targets = ["Linear"] if len(by_scheme) == 1 else [_pattern(name, prefix) for name in names]
        groups[f"group_{i}"] = {"targets": targets, **scheme}
    config: dict[str, Any] = {
        "quant_method": OURS if tables else PORTABLE,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted({_pattern(name, prefix) for name in ignored}),
        "dequantize": True,
    }
    if tables:
        config["embeddings"] = {
            "targets": sorted(tables),
            "weights": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
        }
    return config


def parse_quantization_config(config: Any, where: str) -> QuantizationConfig:
    """Read a `quantization_config` of ours, or of another tool's int-quantized checkpoint; absent keys have defaults.

    Raises:
        CheckpointError: another method or format, a key of the wrong type, or a scheme that is not 8-bit integers.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: no quantization_config; this is not a quantized checkpoint")
    method, stored_as = config.get("quant_method"), config.get("format", FORMAT)
    if method not in (PORTABLE, OURS) or stored_as != FORMAT:
        raise CheckpointError(
            f"{where}: quant_method {method!r}, format {stored_as!r}; this release reads {PORTABLE!r} and {OURS!r} "
            f"in {FORMAT!r}"
        )
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if config.get(key):
            raise CheckpointError(f"{where}: {key} is set; this release cannot read such checkpoints")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or (not groups and method == PORTABLE):
        raise CheckpointError(f"{where}: config_groups is missing or empty")
    embeddings = config.get("embeddings", {"targets": []})
    return QuantizationConfig(
        groups=tuple(_parse_group(group, f"{where}: {name}") for name, group in groups.items()),
        ignore=_strings(config.get("ignore") or [], f"{where}: ignore"),
        embeddings=_strings(
            _mapping(embeddings, f"{where}: embeddings").get("targets"), f"{where}: embeddings.targets"
        ),
    )


def _pattern(name: str, prefix: str) -> str:
    """What matches a module of the base model with and without its prefix."""
    if not prefix:
        return name
    return f"re:(?:{re.escape(prefix)}\\.)?{re.escape(name.removeprefix(f'{prefix}.'))}$"


def _names(entry: str, module: str) -> bool:
    return re.match(entry[3:], module) is not None if entry.startswith("re:") else entry == module


def _weight_args(name: str, layer: StoredLinear) -> dict[str, Any]:
    spec = layer.qtensor.spec
    if spec.bits != 8 or spec.group_size is not None:
        raise CheckpointError(
            f"{name}: {spec.bits}-bit weights with group_size {spec.group_size} do not fit {FORMAT}; "
            "it holds 8-bit weights with a scale per row or per tensor"
        )
    return _args(spec.symmetric, "tensor" if spec.per_tensor else "channel", dynamic=False)


def _input_args(name: str, layer: StoredLinear) -> dict[str, Any]:
    spec = layer.input_spec
    if spec.bits != 8 or spec.group_size is not None or (not spec.dynamic and not spec.per_tensor):
        raise CheckpointError(
            f"{name}: {spec} does not fit {FORMAT}; inputs are 8-bit, dynamic per token or per tensor, or static per "
            "tensor"
        )
    return _args(spec.symmetric, "tensor" if spec.per_tensor else "token", dynamic=spec.dynamic)


def _args(symmetric: bool, strategy: str, *, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": dynamic}


def _parse_group(group: Any, where: str) -> Group:
    group = _mapping(group, where)
    if group.get("format") not in (None, FORMAT) or group.get("output_activations"):
        raise CheckpointError(
            f"{where}: format {group.get('format')!r}, or quantized outputs; this release reads neither"
        )
    weight = _parse_args(group.get("weights"), f"{where}.weights", ("channel", "tensor"))
    if weight.dynamic:
        raise CheckpointError(f"{where}.weights: dynamic weights are not a stored scheme")
    return Group(
        targets=_strings(group.get("targets"), f"{where}.targets"),
        weight=weight,
        input=_parse_args(group.get("input_activations"), f"{where}.input_activations", ("token", "tensor")),
    )


def _parse_args(args: Any, where: str, strategies: tuple[str, str]) -> QuantSpec:
    args = _mapping(args, where)
    bits, kind = args.get("num_bits", 8), args.get("type", "int")
    symmetric, dynamic = args.get("symmetric", True), args.get("dynamic", False)
    strategy = args.get("strategy") or ("channel" if args.get("group_size") == -1 else "tensor")
    if bits != 8 or kind != "int" or strategy not in strategies or args.get("group_size") not in (None, -1):
        raise CheckpointError(
            f"{where}: {bits}-bit {kind} per {strategy}, group_size {args.get('group_size')}; "
            f"this release reads 8-bit int per {' or per '.join(strategies)}"
        )
    if not isinstance(symmetric, bool) or not isinstance(dynamic, bool):
        raise CheckpointError(f"{where}: symmetric = {symmetric!r}, dynamic = {dynamic!r}; both must be true or false")
    if strategy == "token" and not dynamic:
        raise CheckpointError(f"{where}: static scales per token cannot be stored")
    return QuantSpec(symmetric=symmetric, per_tensor=strategy == "tensor", dynamic=dynamic)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected an object, got {str(value)[:80]!r}")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{where}: expected a list of names, got {str(value)[:80]!r}")
    for item in value:
        if item.startswith("re:"):
            try:
                re.compile(item[3:])
            except re.error as error:
                raise CheckpointError(f"{where}: {item!r} is not a regular expression ({error})") from None
    return tuple(value)
