"""What unlabelled faces teach: to read a strongly varied picture as the averaged weights read the plain one, and to
agree with a weak teacher where it is believed.

The first is the mean teacher of Tarvainen and Valpola (2017, arXiv 1703.01780) with the strong variation of the student
alone that FixMatch (Sohn et al. 2020, arXiv 2001.07685) brought; the target stays soft.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import torch
from torch.nn.functional import kl_div, smooth_l1_loss

from au_llava.action_units import get_format
from au_llava.decoding_au_llava import read_tree
from au_llava.slot_tree_au_llava import SlotTree, compile_slots

NEAR = 0.1  # share of the scale below which the weak teacher's loss is quadratic, not linear: it is not that exact


@dataclass
class UnlabelledFaces:
    """Unlabelled training pictures and the weights of their losses.

    Args:
        rows: of `mixing.unlabelled_rows`, all with the same formats.
        consistency_weight, weak_weight: of the two losses, relative to the loss on labels; 0 or more.

    Raises:
        ValueError: pictures of different formats.
    """

    rows: datasets.Dataset
    consistency_weight: float = 0.5
    weak_weight: float = 1.0

    def __post_init__(self):
        kinds = sorted(set(map(tuple, self.rows["formats"][:])))
        if len(kinds) > 1:
            told = " and ".join(map(", ".join, kinds[:2]))
            raise ValueError(f"unlabelled pictures must all have records of the same formats; some have {told}.")
        self.formats = tuple(map(get_format, kinds[0]))

    def tree(self, processor, pixel_values: torch.Tensor) -> SlotTree:
        """The token tree of their formats for `pixel_values` (..., height, width), on their device."""
        tokens = processor.num_image_tokens(*pixel_values.shape[-2:])
        return compile_slots(processor, self.formats, tokens).to(pixel_values.device)

    @torch.no_grad()
    def teach(self, model, tree: SlotTree, plain: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (pictures, V) of every value of every slot: the mean over pictures and mirror images.

        Args:
            model: in evaluation mode, holding the averaged weights.
            plain: (pictures, 3, height, width), without variation.
        """
        read = read_tree(model, tree, plain, [fmt.labels for fmt in self.formats], mirror_images=True)
        return torch.cat([each.flatten(1) for each in read], dim=1)

    def losses(
        self,
        tree: SlotTree,
        student: torch.Tensor,
        teacher: torch.Tensor,
        weak: torch.Tensor,
        readable: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed losses (consistency, weak): scalars, to be divided by `items`.

        Consistency is the Kullback-Leibler divergence of each AU's value distribution from the teacher's. The weak
        loss is smooth L1 between expectation and estimate, as shares of the scale.

        Args:
            student, teacher: (pictures, V) log-probabilities of the tree's values.
            weak: (pictures, AUs of all formats) estimates from 0 to 1, NaN where not believed.
            readable: (pictures,) bool, False for pictures that carry no loss.
        """
        consistency = kl_div(student, teacher, log_target=True, reduction="none").sum(1)[readable].sum()
        shares = [torch.tensor(fmt.value_numbers, device=weak.device) / fmt.value_numbers[-1] for fmt in self.formats]
        read = tree.by_format(student.exp())
        expected = torch.cat([(each * share).sum(-1) for each, share in zip(read, shares, strict=True)], dim=1)
        believed = believable(weak, readable)
        return consistency, smooth_l1_loss(expected[believed], weak[believed], reduction="sum", beta=NEAR)


def believable(weak: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
    """(pictures, AUs) bool: which estimates of the weak teacher carry loss."""
    return ~weak.isnan() & readable[:, None]


def items(weak: torch.Tensor, readable: torch.Tensor) -> Sequence[torch.Tensor]:
    """How many AUs carry (consistency, weak) loss; arguments as of `UnlabelledFaces.losses`."""
    return readable.sum() * weak.shape[1], believable(weak, readable).sum()
