"""Build the untrained base of the shipped checkpoint: a small ResNet, one linear layer, a four-layer Llama.

    python maintenance/build_tiny_base.py --out runs/tiny-base
    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml

Two choices make it fast on a CPU. The tower is convolutional: a ViT of this size does not learn faces from scratch in
the time a CPU allows. The tokenizer holds every sentence of the prompt, every AU label and every value as one token:
all the text about three formats takes 60 tokens, and any other text falls back to bytes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import LlamaConfig, ResNetConfig

from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_training.untrained import phrase_tokenizer, untrained
from au_llava.configuration_au_llava import add_image_token

IMAGE_SIZE = 96
TOWER = {"embedding_size": 48, "hidden_sizes": [48, 96, 192, 320], "depths": [2, 2, 2, 2], "layer_type": "basic"}
TEXT = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}


def build(seed: int = 0, image_size: int = IMAGE_SIZE):
    """The random base and its processor, always the same for a seed."""
    tokenizer = phrase_tokenizer()
    add_image_token(tokenizer)
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True)
    return untrained(ResNetConfig(**TOWER), text, tokenizer, image_size, seed=seed)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the base to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="side of the images (default: 96)")
    return parser


def run(words: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(words)

    def main() -> None:
        model, processor = build(arguments.seed, arguments.image_size)
        model.save_pretrained(arguments.out)
        processor.save_pretrained(arguments.out)
        print(f"{arguments.out}: {model.num_parameters():,} parameters, {len(processor.tokenizer)} tokens")

    return run_command("build_tiny_base.py", main)


if __name__ == "__main__":
    sys.exit(run())
