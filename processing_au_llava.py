"""The AU-LLaVA processor: image processor and tokenizer, and the tokens of a format's prompt.

Owns the chat templates and the number of tokens per image. action_units.py owns the wording of prompts.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers.image_utils import get_image_size, to_numpy_array
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .action_units import AUFormat, get_format, prompt
from .configuration_au_llava import IMAGE_TOKEN, AuLlavaConfig, add_image_token, check_prompt_order
from .decision_template_au_llava import DECISION_TEMPLATE_NAME, decision_template
from .image_processing_au_llava import AuLlavaImageProcessor
from .parts_au_llava import part_config, part_tokenizer, vision_settings

# Contents may be strings or lists; {% generation %} marks the assistant's words, with their end token.
CHATML_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{%- if message['content'] is string %}{{- message['content'] }}{% else %}
{%- for part in message['content'] %}{%- if part['type'] == 'text' %}{{- part['text'] }}{% endif %}{% endfor %}
{%- endif %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{%- if message['content'] is string %}{{- message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{- '<image>' }}{% elif part['type'] == 'text' %}{{- part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

# For language models without chat markers, as in Vicuna v1.5.
PLAIN_TEMPLATE = """\
{%- if bos_token %}{{- bos_token }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- 'ASSISTANT: ' }}
{%- generation %}
{%- if message['content'] is string %}{{- message['content'] }}{% else %}
{%- for part in message['content'] %}{%- if part['type'] == 'text' %}{{- part['text'] }}{% endif %}{% endfor %}
{%- endif %}
{{- eos_token }}
{%- endgeneration %}
{%- else %}
{{- message['role'] | upper + ': ' }}
{%- if message['content'] is string %}{{- message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{- '<image>\\n' }}{% elif part['type'] == 'text' %}{{- part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- ' ' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{% endif %}
"""


class AuLlavaProcessor(ProcessorMixin):
    """Prepares images and text for `AuLlavaForConditionalGeneration`.

    Args:
        image_processor: `AuLlavaImageProcessor`.
        tokenizer: the language model's tokenizer, with the token `<image>`.
        vision_stride: input pixels per vision feature along one side, as in the model's configuration.
        pixel_unshuffle, prompt_order: as in the model's configuration.
        chat_template: Jinja template; `from_vision_text_pretrained` sets `CHATML_TEMPLATE` or `PLAIN_TEMPLATE`.

    Raises:
        ValueError: the tokenizer lacks the token `<image>`, or an unknown order.
    """

    text_kwargs = {"add_special_tokens": False}  # noqa: RUF012 - the chat template writes them

    def __init__(
        self,
        image_processor,
        tokenizer,
        vision_stride=14,
        pixel_unshuffle=1,
        chat_template=None,
        prompt_order="image_first",
    ):
        check_prompt_order(prompt_order)
        self.prompt_order = prompt_order
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.vision_stride = vision_stride
        self.pixel_unshuffle = pixel_unshuffle
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(
                f"The tokenizer does not know {IMAGE_TOKEN}: build the processor with "
                "AuLlavaProcessor.from_vision_text_pretrained, or call add_image_token(tokenizer) first."
            )

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        *,
        pixel_unshuffle: int = 1,
        vision_stride: int | None = None,
        prompt_order: str = "image_first",
        trust_remote_code: bool = False,
    ) -> "AuLlavaProcessor":
        """The processor for `AuLlavaForConditionalGeneration.from_vision_text_pretrained(vision, text, ...)`.

        The image token is the next id after the tokenizer of `text`. The chat template is ChatML if the tokenizer knows
        `<|im_start|>` (Qwen, SmolLM), otherwise Vicuna's plain "USER: ... ASSISTANT:".
        """
        tokenizer = part_tokenizer(text, trust_remote_code)
        chatml = tokenizer.convert_tokens_to_ids("<|im_start|>") not in (None, tokenizer.unk_token_id)
        add_image_token(tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        if vision_stride is None:
            whole = part_config(vision, trust_remote_code)
            settings = vision_settings(vision, trust_remote_code)
            vision_stride = AuLlavaConfig(
                vision_config=getattr(whole, "vision_config", whole), **settings
            ).vision_stride
        return cls(
            AuLlavaImageProcessor.like(vision, trust_remote_code=trust_remote_code),
            tokenizer,
            vision_stride=vision_stride,
            pixel_unshuffle=pixel_unshuffle,
            prompt_order=prompt_order,
            chat_template=CHATML_TEMPLATE if chatml else PLAIN_TEMPLATE,
        )

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the folder also gets the template of decision models."""
        saved = super().save_pretrained(save_directory, **kwargs)
        Path(save_directory, DECISION_TEMPLATE_NAME).write_text(decision_template(self), encoding="utf-8")
        return saved

    def num_image_tokens(self, height: int, width: int) -> int:
        """Number of tokens in the prompt for one image of `height` x `width` pixels, after preprocessing."""
        stride = self.vision_stride * self.pixel_unshuffle
        return (height // stride) * (width // stride)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self.num_image_tokens(height, width)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        crop = kwargs.get("crop_size") or self.image_processor.crop_size
        tokens = self.num_image_tokens(crop["height"], crop["width"])
        return MultiModalData(num_image_tokens=[tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes))

    def messages(self, fmt: str | AUFormat, answer: str | None = None) -> list[dict]:
        """The conversation that asks for `fmt` about one image, for `apply_chat_template`; `answer` is its reply."""
        content = [{"type": "image"}, {"type": "text", "text": prompt(get_format(fmt))}]
        if self.prompt_order == "text_first":
            content.reverse()
        turns = [{"role": "user", "content": content}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return turns

    def prompt_ids(self, fmt: str | AUFormat, image_tokens: int) -> list[int]:
        """Token ids of the prompt that asks for `fmt` about one image, up to where the answer begins.

        Args:
            image_tokens: number of image tokens, see `num_image_tokens`.
        """
        text = self.apply_chat_template(self.messages(fmt), add_generation_prompt=True)
        before, after = text.split(self.image_token)
        text = before + self.image_token * image_tokens + after
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def shared_length(self, prompt_ids: Sequence[int]) -> int:
        """How many tokens of a prompt come before the image and are worth sharing between images: 0 if it is first."""
        return prompt_ids.index(self.image_token_id) if self.prompt_order == "text_first" else 0

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as training text: the answer and the marker that ends the assistant's turn."""
        placeholder = "the answer"
        conversation = self.apply_chat_template(self.messages("bp4d", answer=placeholder))
        end = conversation.rpartition(placeholder)[2].strip()
        ids = self.tokenizer([answer, end], add_special_tokens=False)["input_ids"]
        return ids[0] + ids[1]


AuLlavaProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["CHATML_TEMPLATE", "PLAIN_TEMPLATE", "AuLlavaProcessor"]
