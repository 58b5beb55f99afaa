"""Pre-train the vision tower of a base on rendered faces, as real vision encoders come pre-trained too.

    python tools/pretrain_tower.py --base runs/tiny-base --data data/rendered-train --out runs/tiny-base-seen

A linear head reads all values of all formats off the tower's feature map; the head is thrown away afterwards. Without
this step the language model's slot loss stays at the base rates for a long time: it has to learn where to look and the
tower what to show at once (docs/log.md has the trial).
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import nn
from transformers import AutoProcessor, Trainer, TrainingArguments

from au_llava.action_units import MAIN_FORMATS, get_format
from au_llava.collator_au_llava import mirrored_values
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.train_sft import training_rows


class TowerWithHead(nn.Module):
    """The tower and one linear layer that gives, for every AU of every format, its value as a share of the scale.

    Args:
        tower: a convolutional tower whose output is (batch, width, rows, columns).
        features: width x rows x columns. outputs: number of values read off.
    """

    def __init__(self, tower: nn.Module, features: int, outputs: int):
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(features, outputs)

    def forward(self, pixel_values: torch.Tensor, shares: torch.Tensor):
        """pixel_values (batch, 3, height, width), shares (batch, outputs) 0 to 1 or NaN -> {"loss", "logits"}."""
        logits = self.head(self.tower(pixel_values).last_hidden_state.flatten(1))
        known = ~shares.isnan()
        loss = nn.functional.binary_cross_entropy_with_logits(logits[known], shares[known])
        return {"loss": loss, "logits": logits}


class SharesCollator:
    """Images and the values of all formats as shares of their scales, NaN where unknown; half of them flipped."""

    def __init__(self, processor, seed: int):
        self.processor = processor
        self.rng = np.random.default_rng(seed)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images, shares = [], []
        for row in rows:
            values = dict(zip(row["formats"], row["values"], strict=True))
            flip = self.rng.random() < 0.5
            images.append(ImageOps.mirror(row["image"]) if flip else row["image"])
            line = []
            for name, fmt in zip(MAIN_FORMATS, map(get_format, MAIN_FORMATS), strict=True):
                known = values.get(name, [float("nan")] * len(fmt.labels))
                known = mirrored_values(known, fmt) if flip else known
                line += [value / fmt.value_numbers[-1] for value in known]
            shares.append(line)
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "shares": torch.tensor(shares)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of the model whose tower is trained")
    parser.add_argument("--data", nargs="+", required=True, help="record tables, as in train_sft.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the base with the trained tower")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the images (default: 3)")
    parser.add_argument("--batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="peak learning rate (default: 3e-3)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    arguments = parser.parse_args()

    rows = training_rows(arguments.data, "train", None, arguments.seed)
    model = AuLlavaForConditionalGeneration.from_pretrained(arguments.base, dtype="float32")
    processor = AutoProcessor.from_pretrained(arguments.base, trust_remote_code=True)
    tower = model.model.vision_tower.to(memory_format=torch.channels_last)
    crop = processor.image_processor.crop_size
    cells = processor.num_image_tokens(crop["height"], crop["width"]) * processor.pixel_unshuffle**2
    outputs = sum(len(fmt.labels) for fmt in map(get_format, MAIN_FORMATS))
    training = TrainingArguments(
        output_dir=str(arguments.out / "training"),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.05,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=arguments.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        TowerWithHead(tower, model.config.vision_width * cells, outputs),
        training,
        data_collator=SharesCollator(processor, arguments.seed),
        train_dataset=rows,
    )
    trainer.train()
    model.cpu().save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    shutil.rmtree(arguments.out / "training", ignore_errors=True)
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
