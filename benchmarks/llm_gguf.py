"""Write a Llama's Hugging Face directory as GGUF files: bfloat16, and what llama.cpp's own quantizer makes of it.

    python benchmarks/llm_gguf.py MODEL OUT.gguf [--types Q4_0 Q8_0]     needs `pip install gguf llama-cpp-python`

Writes OUT.gguf (the very bytes of the bfloat16 weights, rows of q and k in llama.cpp's order), and OUT.Q4_0.gguf and
so on beside it. Imports nothing of Bitwright: it runs in the rivals' environment.
"""

import argparse
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

TYPES = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_bfloat16(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and bits, uint16, of all tensors.

    Raises:
        ValueError: a tensor is of another dtype.
    """
    for path in sorted(directory.glob("*.safetensors")):
        data = np.memmap(path, np.uint8, "r")
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise ValueError(f"{path}: {name} is {entry['dtype']}; only BF16 checkpoints are converted here")
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name in TOP:
        return TOP[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{BLOCK[rest.removesuffix('.weight')]}.weight"


def interleaved(w_NK: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, whose halves of a head rotate together, in the order where neighbours do."""
    n, k = w_NK.shape
    return w_NK.reshape(heads, 2, n // heads // 2, k).swapaxes(1, 2).reshape(n, k)


def add_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE of tokenizer.json; ids that the model has beyond it are unused tokens."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"<unused{number}>" for number in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for text, number in tokenizer["model"]["vocab"].items():
        tokens[number], types[number] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge)
                             for merge in tokenizer["model"]["merges"]])  # fmt: skip
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def write_gguf(directory: Path, out: Path) -> None:
    """Write a Llama in bfloat16.

    Raises:
        ValueError: no model of that kind, or not in bfloat16.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise ValueError(f"{directory}: a {config['model_type']}; only llama is converted here")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    add_tokenizer(writer, directory, config)
    for name, bits in read_bfloat16(directory):
        if bits.ndim == 1:
            writer.add_tensor(gguf_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        rotated = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        ordered = np.ascontiguousarray(interleaved(bits, rotated) if rotated else bits)
        writer.add_tensor(gguf_name(name), ordered.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, out: Path, kind: str) -> None:
    """Let llama.cpp quantize a GGUF file.

    Raises:
        RuntimeError: it did not.
    """
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype = TYPES[kind]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), asked):
        raise RuntimeError(f"llama.cpp did not quantize {source} to {kind}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all files that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--types", nargs="*", choices=list(TYPES), default=["Q4_0", "Q8_0"])
    options = parser.parse_args(arguments)
    write_gguf(options.model, options.out)
    for kind in options.types:
        quantize(options.out, options.out.with_suffix(f".{kind}.gguf"), kind)


if __name__ == "__main__":
    main()
