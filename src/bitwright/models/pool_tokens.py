"""From token vectors to one vector per text.

B batch · T sequence · H hidden size.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.files.pooling import Mode, Pooling


def pool_tokens(hidden_BTH: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text: floating (B, H · number of modes), in the dtype of the hidden states.

    hidden_BTH: floating token vectors. mask_BT: 0/1, at least one 1 in each row; what it excludes has no influence.
    Sums over tokens are taken in float32 or wider.
    """
    wide_BTH = hidden_BTH.to(torch.promote_types(hidden_BTH.dtype, torch.float32))
    kept_BT = mask_BT.bool()
    vectors = torch.cat([_pool_one(wide_BTH, kept_BT, mode) for mode in pooling.modes], dim=-1)
    if pooling.normalize:
        vectors = functional.normalize(vectors, dim=-1)
    return vectors.to(hidden_BTH.dtype)


def _pool_one(hidden_BTH: Tensor, kept_BT: Tensor, mode: Mode) -> Tensor:
    if mode == "cls":
        return _row_of(hidden_BTH, kept_BT.int().argmax(1))
    if mode == "lasttoken":
        return _row_of(hidden_BTH, kept_BT.shape[1] - 1 - kept_BT.flip(1).int().argmax(1))
    if mode == "max":
        return hidden_BTH.masked_fill(~kept_BT.unsqueeze(-1), -torch.inf).amax(1)
    # Position weights of weightedmean: 1, 2, 3 … from the first token that is not padding, wherever that is.
    weights_BT = (kept_BT.long().cumsum(1) if mode == "weightedmean" else kept_BT).to(hidden_BTH.dtype) * kept_BT
    sums_BH = (hidden_BTH.masked_fill(~kept_BT.unsqueeze(-1), 0) * weights_BT.unsqueeze(-1)).sum(1)
    total_B1 = weights_BT.sum(1, keepdim=True)
    return sums_BH / (total_B1.sqrt() if mode == "mean_sqrt_len_tokens" else total_B1)


def _row_of(hidden_BTH: Tensor, place_B: Tensor) -> Tensor:
    """The token vector at one place of each text. As a gather, which exports for any batch: a range over the texts
    would fix their number."""
    return hidden_BTH.gather(1, place_B.view(-1, 1, 1).expand(-1, 1, hidden_BTH.shape[2])).squeeze(1)
