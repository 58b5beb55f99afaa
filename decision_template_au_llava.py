"""`decision_template.jinja`: one question of the decision interface as a prompt that one token answers.

For whoever reads a checkpoint by the plain route of Transformers' decision models: the labels in `decision.json` are
single tokens, and their logits after the mark are the answer, one forward pass per question. The template therefore
covers occurrence (`noul`) and intensity (`score`); values of several tokens, mirror images and calibration are only
read by the model's own `decide` (decision_au_llava.py).
"""

import json

from .action_units import BUILT_IN, FORMATS, MAIN_FORMATS, PURPOSE, definition_line, prompt_parts, value_prefix

DECISION_TEMPLATE_NAME = "decision_template.jinja"

TEMPLATE = """\
{#- One AU of one face: the prompt of a format and the answer up to the value. From decision_template_au_llava.py,
    for questions whose instructions name an AU and a format, such as "disfa AU12". -#}
{%- set formats = @FORMATS@ -%}
{%- set definitions = @DEFINITIONS@ -%}
{%- set expected = @EXPECTED@ -%}
{%- set scale = {"noul": "occurrence", "score": "intensity"}[question.type] -%}
{%- set ns = namespace(format=none, label=none) -%}
{%- set named = question.name if question.instructions is none else question.instructions -%}
{%- set words = named.split() if named is string else [named.au, named.format or ""] -%}
{%- for word in words -%}
    {%- if word|lower in formats -%}{%- set ns.format = word|lower -%}{%- endif -%}
    {%- if word|upper in definitions -%}{%- set ns.label = word|upper -%}{%- endif -%}
{%- endfor -%}
{%- for name in @MAIN@ -%}
    {%- if ns.format is none and formats[name].scale == scale and ns.label in formats[name].labels -%}
        {%- set ns.format = name -%}
    {%- endif -%}
{%- endfor -%}
{%- if not state -%}{{- raise_exception("state must be the name of the image.") -}}{%- endif -%}
{%- if ns.format is none or ns.label not in formats[ns.format].labels -%}
    {{- raise_exception("instructions must name an AU and a format that has it.") -}}
{%- endif -%}
{%- if formats[ns.format].scale != scale -%}
    {{- raise_exception("one token answers a noul on the occurrence scale or a score on the intensity scale.") -}}
{%- endif -%}
{{- @BEFORE@ -}}
{%- for label in formats[ns.format].labels -%}{{- definitions[label] -}}{%- endfor -%}
{{- expected[scale] ~ @AFTER@ ~ "<|split|>" ~ ns.label ~ @COLON@ ~ "<|mark|>" -}}
"""


def decision_template(processor) -> str:
    """The template in the chat format of `processor`, whose image token stands for the image."""
    name = MAIN_FORMATS[0]
    start, *_, end = prompt_parts(FORMATS[name])
    asked = processor.apply_chat_template(processor.messages(name), add_generation_prompt=True)
    formats = {fmt.name: fmt for fmt in BUILT_IN if fmt.scale != "continuous"}
    labels = dict.fromkeys(label for fmt in formats.values() for label in fmt.labels)
    parts = {
        "FORMATS": {name: {"scale": fmt.scale, "labels": fmt.labels} for name, fmt in formats.items()},
        "DEFINITIONS": {label: definition_line(label) for label in labels},
        "EXPECTED": {fmt.scale: prompt_parts(fmt)[-1] for fmt in formats.values()},
        "MAIN": [name for name in MAIN_FORMATS if name in formats],
        "BEFORE": asked.partition(start)[0] + PURPOSE,
        "AFTER": asked.rpartition(end)[2],
        "COLON": value_prefix(""),
    }
    template = TEMPLATE
    for part, value in parts.items():
        template = template.replace(f"@{part}@", json.dumps(value))
    return template


__all__ = ["DECISION_TEMPLATE_NAME", "decision_template"]
