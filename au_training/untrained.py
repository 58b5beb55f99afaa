"""Untrained networks: shapes as published, tokenizers made from our own prompts, random weights. Nothing is downloaded.

For planning and timing a network before its weights are there, and for the base of a small one.
"""

from collections.abc import Iterable
from copy import deepcopy

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
)

from au_llava.action_units import (
    ACTION_UNITS,
    FORMATS,
    MAIN_FORMATS,
    SCALES,
    SEPARATOR,
    definition_line,
    prompt,
    prompt_parts,
    value_prefix,
    value_texts,
)
from au_llava.configuration_au_llava import AuLlavaConfig, add_image_token
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import CHATML_TEMPLATE, AuLlavaProcessor


# ---- Shapes ---------------------------------------------------------------------------------------------------------
def _text(
    kind, vocabulary: int, width: int, mlp: int, layers: int, heads: int, groups: int, **more
) -> PreTrainedConfig:
    return kind(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        **more,
    )


_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
_SMOLLM2 = {"tie_word_embeddings": True, "max_position_embeddings": 8192}
_QWEN3 = {"tie_word_embeddings": True, "max_position_embeddings": 40960, "head_dim": 128}
_VICUNA = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
# Hub id -> shape as in its config.json; of an encoder also the side of its images, as in its preprocessor_config.json.
PUBLISHED: dict[str, tuple[PreTrainedConfig, int | None]] = {
    "google/siglip2-base-patch16-224": (SiglipVisionConfig(image_size=224, patch_size=16), 224),
    "google/siglip2-so400m-patch16-384": (SiglipVisionConfig(**_SO400M, image_size=384, patch_size=16), 384),
    "openai/clip-vit-large-patch14-336": (CLIPVisionConfig(**_VIT_L, intermediate_size=4096, image_size=336), 336),
    "facebook/dinov2-large": (Dinov2Config(**_VIT_L, image_size=518), 224),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (_text(LlamaConfig, 49152, 576, 1536, 30, 9, 3, **_SMOLLM2), None),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (_text(LlamaConfig, 49152, 960, 2560, 32, 15, 5, **_SMOLLM2), None),
    "Qwen/Qwen3-0.6B": (_text(Qwen3Config, 151936, 1024, 3072, 28, 16, 8, **_QWEN3), None),
    "Qwen/Qwen3-1.7B": (_text(Qwen3Config, 151936, 2048, 6144, 28, 16, 8, **_QWEN3), None),
    "lmsys/vicuna-7b-v1.5": (_text(LlamaConfig, 32000, 4096, 11008, 32, 32, 32, **_VICUNA), None),
}


def published_shape(source: str) -> PreTrainedConfig:
    """A copy of the shape that a Hub id has in `PUBLISHED`."""
    return deepcopy(PUBLISHED[source][0])


# ---- Tokenizers -----------------------------------------------------------------------------------------------------
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _with_special(tokenizer: Tokenizer, padding: str = SPECIAL[0], **more) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=padding, **more)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign of our prompts and answers; Qwen's own takes 4 % more for three formats."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(words), behavior="isolated")
    answers = [text for fmt in FORMATS.values() for label in fmt.labels for text in value_texts(label, fmt)]
    trainer = trainers.WordLevelTrainer(vocab_size=10**6, special_tokens=["?", *SPECIAL[1:]])
    tokenizer.train_from_iterator([*map(prompt, FORMATS.values()), *answers, "user\nassistant\n"], trainer)
    return _with_special(tokenizer, "?", unk_token="?")


def byte_pair_tokenizer(texts: Iterable[str], words: str, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` tokens, learned from `texts`, as Qwen, SmolLM2 and Llama-3 have it.

    Args:
        words: regular expression of what merges stay within; it decides how digits are grouped.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_special(tokenizer, padding_side="left")


def phrases() -> list[str]:
    """What prompts and answers are made of: sentences, labels and values, each once."""
    parts = [prompt_parts(FORMATS[name]) for name in MAIN_FORMATS]
    sentences = ["user\n", "assistant\n", SEPARATOR, parts[0][0], *(part[-1] for part in parts)]
    labels = [*map(definition_line, ACTION_UNITS), *map(value_prefix, ACTION_UNITS)]
    values = [value for values in SCALES.values() for value in values]
    return list(dict.fromkeys(sentences + labels + values))


def phrase_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, plus one token for each of `phrases`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases()])
    return _with_special(tokenizer, padding_side="left")


@torch.no_grad()
def add_phrases(model: AuLlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Give the phrases that `action_units` has gained since a `phrase_tokenizer` was made tokens of their own.

    A new token starts as the mean of those that spelled it. Prompts without new phrases stay as they were.

    Returns:
        the new phrases; none for a tokenizer of another kind.
    """
    known, wanted = tokenizer.get_vocab(), phrases()
    new = [phrase for phrase in wanted if phrase not in known]
    if not new or wanted[0] not in known:
        return []
    spelled = [tokenizer.encode(phrase, add_special_tokens=False) for phrase in new]
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in new])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        for phrase, pieces in zip(new, spelled, strict=True):
            layer.weight[tokenizer.convert_tokens_to_ids(phrase)] = layer.weight[pieces].mean(0)
    return new


# ---- Models and processors ------------------------------------------------------------------------------------------
def processor_for(
    config: AuLlavaConfig, tokenizer: PreTrainedTokenizerFast, side: int, template: str = CHATML_TEMPLATE
) -> AuLlavaProcessor:
    """The processor of a network that sees square images of `side` pixels."""
    images = AuLlavaImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    add_image_token(tokenizer)
    shared = {name: getattr(config, name) for name in ("vision_stride", "pixel_unshuffle", "prompt_order")}
    return AuLlavaProcessor(images, tokenizer, **shared, chat_template=template)


def untrained(
    vision: PreTrainedConfig,
    text: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    side: int,
    template: str = CHATML_TEMPLATE,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **settings,
) -> tuple[AuLlavaForConditionalGeneration, AuLlavaProcessor]:
    """A network with random weights, always the same for a seed, and its processor.

    Args:
        vision, text: shapes. `text` gets the tokenizer's special tokens; its vocabulary has room for the image token.
        tokenizer: gets the image token.
        side: of the square images, in pixels.
        settings: further ones of `AuLlavaConfig`.
    """
    image_token_id = add_image_token(tokenizer)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    config = AuLlavaConfig(vision_config=vision, text_config=text, **{"image_token_id": image_token_id, **settings})
    torch.manual_seed(seed)
    with torch.device(device):
        model = AuLlavaForConditionalGeneration._from_config(config, **({} if dtype is None else {"dtype": dtype}))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor_for(config, tokenizer, side, template)
