"""vLLM runs a model directory, float or quantized: python examples/vllm_offline.py DIR

needs: pip install bitwright[vllm]
"""

import argparse

from vllm import LLM, SamplingParams


def main() -> None:
    """Nothing here says how the model is stored, or which kernels run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    llm = LLM(parser.parse_args().directory, dtype="bfloat16", max_num_seqs=32)
    prompts = ["Slicing a list makes", "The sky is blue, and"]
    for answer in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16)):
        print(repr(answer.prompt + answer.outputs[0].text))


if __name__ == "__main__":
    main()
