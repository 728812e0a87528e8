"""What a transformers model puts out for a batch of texts, with gradients: embeddings, or rows of logits.

R rows: texts, or tokens where a model puts out something for each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.files.after_pooling import Dense, LayerNorm, Normalize, Step
from bitwright.files.sentences import Sentences
from bitwright.models.pool_tokens import pool_tokens
from bitwright.runtime.generic_model import padded
from bitwright.runtime.items import Tokens

_ACTIVATIONS = {
    "Identity": lambda x: x, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "ReLU": torch.relu, "GELU": functional.gelu,
    "SiLU": functional.silu, "LeakyReLU": functional.leaky_relu, "ELU": functional.elu,
}  # fmt: skip
_PADDING = -1e4  # the logit of a token that is not there


def check_trainable(sentences: Sentences, where: object) -> None:
    """Raises:
    InputError: outputs that are made in a way that training does not have.
    """
    if sentences.mix is not None:
        raise InputError(f"{where}: its embeddings mix the outputs of all layers, which cannot be trained")
    if sentences.answers is not None:
        raise InputError(f"{where}: it scores texts by the probability of an answer, which cannot be trained")


def outputs(hf: nn.Module, tokens: Tokens, task: str, sentences: Sentences) -> Tensor:
    """Of embedding models (B, D), as users see them; of sequence classifiers logits (B, C); of others logits of each
    real token (R, C), of question answering the two of each text (2B, T).
    """
    inputs = padded(tokens, hf.config)
    if task == "text-generation":
        return hf(input_ids=inputs["input_ids"], use_cache=False).logits.flatten(0, 1)  # type: ignore[no-any-return]
    out: Any = hf(**inputs)
    real_BT = inputs["attention_mask"].bool()
    if task == "embedding":
        vectors = pool_tokens(out.last_hidden_state.float(), inputs["attention_mask"], sentences.pooling)
        for step in sentences.steps:
            vectors = _after(vectors, step)
        return vectors
    if task == "question-answering":
        both_B2T = torch.stack((out.start_logits, out.end_logits), dim=1).float()
        return both_B2T.masked_fill(~real_BT[:, None], _PADDING).flatten(0, 1)
    logits: Tensor = out.logits
    return logits[real_BT] if task == "token-classification" else logits


def _after(x_BK: Tensor, step: Step) -> Tensor:
    """A module after pooling, with gradients."""
    match step:
        case Normalize():
            return functional.normalize(x_BK, dim=-1)
        case LayerNorm():
            return functional.layer_norm(
                x_BK, x_BK.shape[-1:], torch.from_numpy(step.weight_H), torch.from_numpy(step.bias_H)
            )
        case Dense():
            bias = None if step.bias_N is None else torch.from_numpy(step.bias_N)
            y_BN: Tensor = _ACTIVATIONS[step.activation](
                functional.linear(x_BK, torch.from_numpy(step.weight_NK), bias)
            )
            if step.residual:
                other = step.residual_NK
                y_BN = y_BN + (x_BK if other is None else functional.linear(x_BK, torch.from_numpy(other)))
            return y_BN
