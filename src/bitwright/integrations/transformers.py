"""`enable()`: `from_pretrained` of transformers gives quantized checkpoints Bitwright's linears.

    from bitwright.integrations.transformers import enable

    enable()
    model = AutoModel.from_pretrained("DIR")

Without it transformers unpacks the codes of compressed-tensors into float weights while it loads, and does not know
`quant_method: bitwright`. With it the codes stay codes: what `bitwright.load(DIR).hf` has in its linears. Everything
around them is built, loaded and computed by transformers.

transformers asks two tables which class loads a `quant_method`; they are what is changed, and nothing else.
"""

import warnings
from typing import Any, NamedTuple

from bitwright.checkpoints.formats import FORMATS

# What of transformers this relies on. Another release may lack one of them, or call them otherwise.
_MAJOR = 5
_HOOKS = ("preprocess_model", "postprocess_model", "_process_model_before_weight_loading",
          "_process_model_after_weight_loading", "update_weight_conversions", "get_state_dict_and_metadata",
          "validate_environment", "update_device_map")  # fmt: skip


class _Row(NamedTuple):
    """What a table of transformers held under a key before; None: nothing."""

    table: dict[str, Any]
    key: str
    before: Any


_changed: list[_Row] = []


def enable() -> bool:
    """From now on `from_pretrained` loads checkpoints in Bitwright's formats with Bitwright's linears, on the CPU.

    Checkpoints in the format compressed-tensors that Bitwright does not read are left to transformers, with a warning.

    Returns:
        Whether that is so: False, after a warning, if this release of transformers is one that Bitwright does not know.
    """
    if _changed:
        return True
    if missing := _missing():
        warnings.warn(
            f"bitwright.integrations.transformers does nothing: {missing}. Checkpoints load as they do without it; "
            "bitwright.load does not depend on this",
            stacklevel=2,
        )
        return False
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    from bitwright.integrations.hf_quantizer import rows_for

    for method in FORMATS:
        before = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method), AUTO_QUANTIZER_MAPPING.get(method)
        tables = AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
        for table, old, new in zip(tables, before, rows_for(method, *before), strict=True):
            _changed.append(_Row(table, method, old))
            table[method] = new
    return True


def disable() -> None:
    """Undo `enable()`. Models that were loaded stay as they are."""
    while _changed:
        table, key, before = _changed.pop()
        if before is None:
            del table[key]
        else:
            table[key] = before


def _missing() -> str:
    """What this release of transformers lacks; "" if nothing."""
    import transformers

    version = transformers.__version__
    if version.partition(".")[0] != str(_MAJOR):
        return f"it knows transformers {_MAJOR}, and {version} is installed"
    try:
        from transformers.core_model_loading import WeightConverter  # noqa: F401
        from transformers.quantizers.auto import (  # noqa: F401
            AUTO_QUANTIZATION_CONFIG_MAPPING,
            AUTO_QUANTIZER_MAPPING,
        )
        from transformers.quantizers.base import HfQuantizer
        from transformers.utils.quantization_config import QuantizationConfigMixin  # noqa: F401
    except ImportError as error:
        return f"transformers {version} has another interface ({error})"
    absent = [hook for hook in _HOOKS if not hasattr(HfQuantizer, hook)]
    return f"transformers {version} has another interface (HfQuantizer has no {absent[0]})" if absent else ""
