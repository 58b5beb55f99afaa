"""The loss of slot batches: cross-entropy over the values of every annotated AU, and its target distributions."""

from functools import lru_cache

import torch

from au_llava.action_units import AUFormat

IGNORED = -100  # label id without loss, as in Transformers


@lru_cache(maxsize=4096)
def value_target(value: float, fmt: AUFormat, width: float) -> torch.Tensor:
    """Target distribution (values,) over the scale of `fmt` for one label.

    With `width` 0 the label gets all the mass. Otherwise the mass of a present AU spreads over the values above 0 as a
    Gaussian around the label, with `width` times the top of the scale as its standard deviation. An absent AU (0) gets
    a target of exactly 0: presence is a difference of kind, not of degree.
    """
    numbers = torch.tensor(fmt.value_numbers)
    if width == 0 or value == 0:
        return (numbers == numbers[fmt.value_numbers.index(value)]).float()
    distance = (numbers - value) / (width * fmt.value_numbers[-1])
    return (-0.5 * distance.square()).masked_fill(numbers == 0, -torch.inf).softmax(0)


def slot_loss(
    logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor, annotated: torch.Tensor
) -> torch.Tensor:
    """Weighted mean cross-entropy between target and predicted value distributions over the annotated AUs.

    Only tokens that can follow compete, as in the slots decoder.

    Args:
        logits: (batch, positions, tokens).
        rows: (batch, D) the position of each decision.
        columns: (batch, D, C) the tokens that may follow it; -1 pads decisions with fewer than C.
        targets: (batch, D, C) target mass of each choice times the AU's weight (1 by default); all zero for AUs that
            are not annotated.
        annotated: (batch,) sum of the weights of each row's annotated AUs: by default, their number.

    Returns:
        scalar.
    """
    cells = rows[..., None] * logits.shape[-1] + columns.clamp(min=0)  # (batch, D, C) into positions x tokens
    chosen = logits.flatten(1).gather(1, cells.flatten(1)).view(columns.shape).float()
    chosen = chosen.masked_fill(columns < 0, torch.finfo(torch.float32).min)
    return -(targets * chosen.log_softmax(-1)).sum() / annotated.sum().clamp(min=1e-6)
