"""Images per second of the three decoders, side by side on the same weights in one run.

    python benchmarks/decoding.py --model .                # the shipped checkpoint
    python benchmarks/decoding.py --shape siglip2-smollm2  # random weights, SigLIP2-base/16-224 + SmolLM2-135M

`prefill` is the least any decoder can do: one forward pass over the prompts, without an answer. Random weights never
end an answer, so `free` is given exactly the tokens of a whole answer; a trained model stops there too.
"""

import argparse
import platform
import time

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from au_llava.action_units import FORMATS, prompt, write_answer
from au_llava.configuration_au_llava import AuLlavaConfig, add_image_token
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import CHATML_TEMPLATE, AuLlavaProcessor
from au_llava.slot_tree_au_llava import compile_slots

ALL = tuple(FORMATS.values())


def word_tokenizer() -> PreTrainedTokenizerFast:
    """About a token a word and a token a digit, as SmolLM2's tokenizer gives for this text (it splits digits)."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompt(fmt) + "user assistant" for fmt in ALL], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0])


def siglip2_smollm2() -> tuple[AuLlavaForConditionalGeneration, AuLlavaProcessor]:
    """Random weights in the shapes of google/siglip2-base-patch16-224 and HuggingFaceTB/SmolLM2-135M."""
    tokenizer = word_tokenizer()
    image_token_id = add_image_token(tokenizer)
    config = AuLlavaConfig(
        vision_config=SiglipVisionConfig(image_size=224, patch_size=16, vision_use_head=False),
        text_config=LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=image_token_id,
        pixel_unshuffle=2,
    )
    torch.manual_seed(0)
    model = AuLlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = AuLlavaImageProcessor()
    return model, AuLlavaProcessor(
        images, tokenizer, vision_stride=16, pixel_unshuffle=2, chat_template=CHATML_TEMPLATE
    )


def seconds(run, repeats: int) -> float:
    """The best of `repeats` runs after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def answer_tokens(processor, fmt) -> int:
    text = write_answer(dict.fromkeys(fmt.labels, 0), fmt)
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def measure(model, processor, batch: int, repeats: int) -> dict[str, float]:
    """Seconds per batch: name -> seconds."""
    crop = processor.image_processor.crop_size
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (batch, crop["height"], crop["width"], 3), dtype=np.uint8))
    image_tokens = processor.num_image_tokens(crop["height"], crop["width"])
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)

    def prefill(formats):
        for fmt in formats:
            ids = torch.tensor(processor.prompt_ids(fmt, image_tokens), device=model.device).expand(batch, -1)
            with torch.no_grad():
                model(input_ids=ids, pixel_values=pixels, logits_to_keep=1)

    def read(formats, decoding, **options):
        model.recognize(processor, images, formats=formats, decoding=decoding, batch_size=batch, **options)

    def free(formats):
        for fmt in formats:
            tokens = answer_tokens(processor, fmt)
            read([fmt], "free", max_new_tokens=tokens, min_new_tokens=tokens)

    feafa = (FORMATS["feafa"],)
    return {
        "prefill, feafa": seconds(lambda: prefill(feafa), repeats),
        "slots, feafa": seconds(lambda: read(feafa, "slots"), repeats),
        "slots, three formats": seconds(lambda: read(ALL, "slots"), repeats),
        "constrained, three formats": seconds(lambda: read(ALL, "constrained"), 1),
        "free, three formats": seconds(lambda: free(ALL), 1),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="checkpoint folder or Hub id")
    which.add_argument("--shape", choices=["siglip2-smollm2"], help="random weights of this shape")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts (default: 3)")
    arguments = parser.parse_args()
    if arguments.model:
        model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    else:
        model, processor = siglip2_smollm2()
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    crop = processor.image_processor.crop_size
    tree = compile_slots(processor, ALL, processor.num_image_tokens(crop["height"], crop["width"]))
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    title = f"{arguments.model or arguments.shape}: {model.num_parameters():,} parameters, tree of {len(tree)} tokens"
    caption = f"{machine}, Python {platform.python_version()}, torch {torch.__version__}, transformers"
    table = Table(title=title, caption=f"{caption} {transformers.__version__}")
    for column in ("batch", "what", "seconds", "images/s", "against free"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for batch in arguments.batch_sizes:
        times = measure(model, processor, batch, arguments.repeats)
        for name, took in times.items():
            ratio = f"{times['free, three formats'] / took:.1f} x" if "three" in name else ""
            table.add_row(str(batch), name, f"{took:.3f}", f"{batch / took:.2f}", ratio)
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
