"""The float model's outputs, computed once: a file of the most likely tokens of every position, mapped into memory.

The rest of a vocabulary is kept as one number, the probability that is left for it (`top_kl`). A file grows by whole
windows, so a run that was killed goes on behind the last one that is complete.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import CheckpointError
from bitwright.progress import Track

_ENTRY = np.dtype([("id", "<i4"), ("log_p", "<f4")])
_AT_ONCE = 16  # windows that pass the float model together: their hidden states are in memory


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The teacher's most likely tokens. entries: mapped, (windows, T, top) of id and log p."""

    entries: np.ndarray

    def of(self, window: int) -> tuple[Tensor, Tensor]:
        """(ids int64 (T, top), log p float32 (T, top)) of one window, in memory."""
        entries = self.entries[window]
        return torch.from_numpy(entries["id"].astype(np.int64)), torch.from_numpy(entries["log_p"].copy())


def cache_top_logits(
    path: Path,
    windows: Sequence[Sequence[int]],
    top: int,
    logits_of: Callable[[Sequence[Sequence[int]]], Iterator[Tensor]],
    track: Track = iter,
) -> TopLogits:
    """Run the float model over windows of equal length, and keep the `top` most likely tokens of every position.

    Args:
        path: of the file, which may hold the first windows already.
        logits_of: of some windows, one (T, V) after the other.
        track: shows how far it is.

    Raises:
        CheckpointError: the disk is full, or writing fails otherwise.
    """
    length = len(windows[0])
    size = length * top * _ENTRY.itemsize
    try:
        with path.open("ab") as file:
            done = file.tell() // size
            file.truncate(done * size)
            for begin in track(range(done, len(windows), _AT_ONCE)):
                for logits_TV in logits_of(windows[begin : begin + _AT_ONCE]):
                    file.write(_most_likely(logits_TV, top).tobytes())
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(
            f"{path}: this file cannot be written ({error.strerror}). The work so far is kept; free some space, and "
            "run the same command again to continue"
        ) from None
    return TopLogits(np.memmap(path, _ENTRY, "r", shape=(len(windows), length, top)))


def teacher_bytes(windows: int, length: int, top: int) -> int:
    """Bytes of the file that `cache_top_logits` writes."""
    return windows * length * top * _ENTRY.itemsize


def _most_likely(logits_TV: Tensor, top: int) -> np.ndarray:
    log_p, ids = logits_TV.float().log_softmax(dim=-1).topk(top, dim=-1)
    entries = np.empty(log_p.shape, _ENTRY)
    entries["id"], entries["log_p"] = ids.numpy(), log_p.numpy()
    return entries


def top_kl(logits_TV: Tensor, ids_Tk: Tensor, log_p_Tk: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the next token, the mean over positions, in nats; a scalar.

    Over k tokens and the rest of the vocabulary as one: Σ_k p_k log(p_k / q_k) + p_rest log(p_rest / q_rest). That is
    at most the divergence over all tokens, and equal to it where both agree on how the rest is divided.

    logits_TV: the student's. ids_Tk, log_p_Tk: the teacher's most likely tokens.
    """
    logits_TV = logits_TV.float()
    log_q_Tk = logits_TV.gather(1, ids_Tk) - logits_TV.logsumexp(dim=-1, keepdim=True)
    p_Tk = log_p_Tk.exp()
    rest_p, rest_q = (_rest(log_Tk) for log_Tk in (log_p_Tk, log_q_Tk))
    kl_T = (p_Tk * (log_p_Tk - log_q_Tk)).sum(dim=-1) + rest_p * (rest_p.log() - rest_q.log())
    return kl_T.mean()


def _rest(log_p_Tk: Tensor) -> Tensor:
    """1 − Σ p, kept above what float32 sums of a vocabulary are exact to."""
    return (1.0 - log_p_Tk.exp().sum(dim=-1)).clamp(min=1e-6)
