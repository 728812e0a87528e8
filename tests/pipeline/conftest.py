"""What the tests of stages share, a language model that was trained a little, and models with a bad unit."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.calibration.columns import Source
from bitwright.calibration.data import BUILTIN
from bitwright.calibration.windows import running_text, token_windows
from tests.stages import inputs_of, opened, prose, tiny_decoder

__all__ = ["inputs_of", "opened", "prose", "tiny_decoder"]

_STEPS, _BATCH, _WINDOW, _CHARACTERS = 60, 16, 48, 1 << 18


@pytest.fixture(scope="session")
def trained_decoder(once: Callable[..., Path], tiny_model: Callable[..., Path]) -> Path:
    """Directory of a llama of 3 blocks (hidden 64, 4 heads, 200 words), trained for a few seconds on English prose."""
    return once("trained llama", lambda path: _train(path, tiny_model("bert")))


def _train(path: Path, tokenizer: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        tie_word_embeddings=False,
    )  # fmt: skip
    text = running_text(Source(BUILTIN))[:_CHARACTERS]
    windows = torch.tensor(token_windows(transformers.AutoTokenizer.from_pretrained(tokenizer), text, _WINDOW, BUILTIN))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(_STEPS):
            ids = windows[torch.randint(len(windows), (_BATCH,))]
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    model.eval().save_pretrained(path)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, path)


@pytest.fixture(scope="session")
def planted() -> Callable[..., Path]:
    """`planted(source, to, norm, readers, features, factor)`: a copy of a model, the same function, in which a norm
    puts out less of some features and its readers weigh them more: the steps that those weights need are far too coarse
    for the others of their groups.
    """

    def make(source: Path, to: Path, norm: str, readers: Sequence[str], features: Sequence[int], factor: float) -> Path:
        shutil.copytree(source, to)
        tensors = load_file(to / "model.safetensors")
        columns = list(features)
        for name in (f"{norm}.weight", f"{norm}.bias"):
            if name in tensors:
                tensors[name][columns] /= factor
        for reader in readers:
            tensors[f"{reader}.weight"][:, columns] *= factor
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
        return to

    return make
