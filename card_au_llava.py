"""The model card in every saved checkpoint: how to load it and, where known, how it was trained."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

TAGS = ["facial-action-units", "facs", "llava", "decision-model", "system-one", "calibrated-probabilities"]
TEMPLATE = """\
---
{{ card_data }}
---

# AU-LLaVA checkpoint

Reads facial action units (AUs) from an aligned face image, in the formats it was trained on, with a probability for
every AU.

{% if data %}
- Started from: {{ base }}
- Trained on: {{ data }} ({{ images }} images, {{ steps }} steps), with train_sft.py and TRL's SFTTrainer
{% else %}
How it was trained is not recorded here.
{% endif %}

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(".", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
result = model.recognize(processor, "face.png", formats=["bp4d", "disfa", "feafa"])[0]
print(result["disfa"].text)
```

{% if scores %}
## Scores on the validation part during training

These people influenced the training. Before you quote scores, evaluate on other people with eval_au.py.

| step | metric | value |
|---:|---|---:|
{% for step, metric, value in scores %}| {{ step }} | {{ metric }} | {{ value }} |
{% endfor %}{% endif %}

## Limits

Action units are movements of the face, not emotions, intentions or truthfulness: do not use this model to infer those,
nor for surveillance. The agreements of licensed data sets (BP4D, DISFA, FEAFA) also cover weights trained on them.
"""


def write_card(folder: str | Path, **facts) -> None:
    """Write README.md into `folder`; without facts an existing one is kept.

    Args:
        facts: about the training, all or none: `base`, `data`, `images`, `steps`, and `scores`, a list of
            (step, metric, value).
    """
    path = Path(folder) / "README.md"
    if facts or not path.exists():
        data = ModelCardData(library_name="transformers", pipeline_tag="image-text-to-text", tags=TAGS)
        ModelCard.from_template(data, template_str=TEMPLATE, **facts).save(path)


__all__ = ["write_card"]
