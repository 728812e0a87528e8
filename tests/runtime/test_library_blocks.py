"""One block of a language model in the library's process gives what it gives in the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bitwright.runtime.library import Library
from bitwright.runtime.library_blocks import Blocks

IDS = torch.randint(5, 200, (21,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize(("family", "blocks"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_blocks_are_those_of_the_whole_model(tiny_model: Callable[..., Path], family: str, blocks: str) -> None:
    path = tiny_model(family, num_hidden_layers=3)
    whole = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    outputs: list[torch.Tensor] = []
    for block in whole.get_submodule(blocks):
        block.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with torch.no_grad():
        logits = whole(torch.tensor([IDS])).logits[0]
    with Library(path, "text-generation", threads=1, limit=64, blocks=blocks) as one:
        assert one.name == f"transformers {transformers.__version__}"
        for index in (0, 1, 2):
            before = outputs[index - 1].numpy() if index else None
            found, *rest = one.block(index, IDS, before, 5)
            np.testing.assert_allclose(found, outputs[index], atol=1e-5)
            assert len(rest) == (index == 2)
    np.testing.assert_allclose(rest[0], logits[-5:], atol=1e-5)


def test_only_one_block_has_weights(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = transformers.LlamaForCausalLM.forward, []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({name.split(".")[2] for name, _ in self.named_parameters() if ".layers." in name})
        return run(self, *args, **kwargs)

    blocks = Blocks(str(tiny_model("llama", num_hidden_layers=3)), "model.layers", trust=False)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", watched)
    with torch.inference_mode():
        (output,) = blocks.block([1, IDS, 5], np.ones((21, 32), np.float32))
    assert output.shape == (21, 32)
    assert seen == [{"1"}]
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    assert all(
        list(block.parameters()) for block in transformers.LlamaForCausalLM(config).model.layers
    )  # the class is as it was
