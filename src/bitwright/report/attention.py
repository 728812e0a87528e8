"""How the engine computes what the files leave open, in words."""

from bitwright.numerics.schemes import SCHEMES
from bitwright.record import HELD, Record
from bitwright.report.wording import listed


def attention_words(record: Record) -> str:
    """Where Bitwright's engine computes attention in 8 bit, and what that costs; "" if there is nothing to tell.

    "8 bit in 5 of 6 blocks (float in block 3); that adds 0.01 points of loss on tuning texts"
    """
    rows, cost = [row for row in record.plan if row.is_attention], record.attention
    in_float = [str(row.block) for row in rows if row.scheme != "int8"]
    n_int8 = len(rows) - len(in_float)
    if not n_int8 and cost is None:
        return ""
    if cost is None:
        said = "what that costs was not measured"
    elif not n_int8:
        said = f"in 8 bit it would add {_points(cost.loss_int8 - cost.loss_float)} of loss on tuning texts"
    else:
        said = f"that adds {_points(cost.loss - cost.loss_float)} of loss on tuning texts"
    if not n_int8:
        return f"float in all {len(rows)} blocks; {said}"
    beside = f" (float in block{'s' * (len(in_float) > 1)} {listed(in_float)})" if in_float else ""
    return f"8 bit in {n_int8} of {len(rows)} blocks{beside}; {said}"


def arithmetic_words(record: Record) -> str:
    """In which arithmetic a language model was judged; "" for a model whose files leave nothing open.

    "linears of at most 4 bits read inputs rounded to 8 bits, by token and group; the head and the cache hold 8 bits"
    """
    held = [row.name.removeprefix("engine: ") for row in record.plan if row.role == HELD and row.scheme == "int8"]
    if not held:
        return ""
    schemes = [SCHEMES[row.scheme] for row in record.plan if row.is_linear and row.scheme in SCHEMES]
    few = [x.weight for x in schemes if x.input is None and x.weight is not None and x.weight.bits <= 4]
    inputs = "linears of at most 4 bits read inputs rounded to 8 bits, by token and group; " if few else ""
    rounded = sorted({weight.grid for weight in few if weight.grid in ("nf4", "kmeans")})
    inputs += f"levels of {' and '.join(rounded)} are rounded to 1/127 of the largest; " if rounded else ""
    return f"{inputs}the {' and the '.join(held)} hold{'s' * (len(held) == 1)} 8 bits"


def _points(loss: float) -> str:
    return f"{round(100 * loss, 2) + 0.0:.2f} points"
