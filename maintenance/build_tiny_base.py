"""Build the untrained base of the shipped checkpoint: a small ResNet, one linear layer, a four-layer Llama.

    python maintenance/build_tiny_base.py --out runs/tiny-base
    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml

Two choices make it fast on a CPU. The tower is convolutional: a ViT of this size does not learn faces from scratch in
the time a CPU gives it. The tokenizer knows every sentence of the prompt, every AU label and every value as one token
each, so that the whole text description of three formats takes 60 tokens; any other text falls back to bytes.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, ResNetConfig

from au_llava.action_units import (
    ACTION_UNITS,
    MAIN_FORMATS,
    SCALES,
    SEPARATOR,
    definition_line,
    get_format,
    prompt_parts,
    value_prefix,
)
from au_llava.configuration_au_llava import AuLlavaConfig, add_image_token
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import CHATML_TEMPLATE, AuLlavaProcessor

IMAGE_SIZE = 96


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, plus one token for each phrase that prompts and answers are made of."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    parts = [prompt_parts(fmt) for fmt in map(get_format, MAIN_FORMATS)]
    phrases = ["user\n", "assistant\n", SEPARATOR, parts[0][0], *(part[-1] for part in parts)]
    phrases += [definition_line(label) for label in ACTION_UNITS] + [value_prefix(label) for label in ACTION_UNITS]
    phrases += [value for values in SCALES.values() for value in values]
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in dict.fromkeys(phrases)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def build(seed: int = 0, image_size: int = IMAGE_SIZE) -> tuple[AuLlavaForConditionalGeneration, AuLlavaProcessor]:
    """The random base and its processor, always the same for the same seed."""
    tokenizer = build_tokenizer()
    image_token_id = add_image_token(tokenizer)
    config = AuLlavaConfig(
        vision_config=ResNetConfig(
            embedding_size=48, hidden_sizes=[48, 96, 192, 320], depths=[2, 2, 2, 2], layer_type="basic"
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        ),
        image_token_id=image_token_id,
    )
    torch.manual_seed(seed)
    model = AuLlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = AuLlavaProcessor(
        AuLlavaImageProcessor(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        ),
        tokenizer,
        vision_stride=config.vision_stride,
        chat_template=CHATML_TEMPLATE,
    )
    return model, processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the base to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument("--image_size", type=int, default=IMAGE_SIZE, help="side of the images (default: 96)")
    arguments = parser.parse_args()
    model, processor = build(arguments.seed, arguments.image_size)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    print(f"{arguments.out}: {model.num_parameters():,} parameters, {len(processor.tokenizer)} tokens")


if __name__ == "__main__":
    main()
