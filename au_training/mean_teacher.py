"""Losses on unlabelled faces: consistency with the averaged weights, and agreement with weak values.

The model learns to read a strongly varied picture as its averaged weights read the plain one: the mean teacher of
Tarvainen and Valpola (2017, arXiv 1703.01780), with strong variation for the student only, as in FixMatch (Sohn et al.
2020, arXiv 2001.07685). Targets stay soft.
"""

from dataclasses import dataclass

import datasets
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.codes import CLASSES, STARTS
from au_llava.decoding_au_llava import read_tree
from au_llava.slot_tree_au_llava import SlotTree, compile_slots


@dataclass
class UnlabelledFaces:
    """Unlabelled training pictures and the weights of their losses.

    Args:
        rows: of `mixing.unlabelled_rows`, all with the same formats.
        consistency_weight, weak_weight: of the two losses, relative to the loss on labels; 0 or more.

    Raises:
        ValueError: pictures with different formats.
    """

    rows: datasets.Dataset
    consistency_weight: float
    weak_weight: float

    def __post_init__(self):
        combinations = sorted(set(map(tuple, self.rows["formats"][:])))
        if len(combinations) > 1:
            examples = " and ".join(map(", ".join, combinations[:2]))
            raise ValueError(f"unlabelled pictures must all have records of the same formats; some have {examples}.")
        self.formats = tuple(map(get_format, combinations[0]))

    def tree(self, processor, pixel_values: torch.Tensor) -> SlotTree:
        """The token tree of the pictures' formats for `pixel_values` (..., height, width), on their device."""
        tokens = processor.num_image_tokens(*pixel_values.shape[-2:])
        return compile_slots(processor, self.formats, tokens).to(pixel_values.device)

    @torch.no_grad()
    def teach(self, model, tree: SlotTree, plain: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (pictures, V) of every value of every slot, averaged over pictures and mirror images.

        Args:
            model: in evaluation mode, with the averaged weights.
            plain: (pictures, 3, height, width), without variation.
        """
        return read_tree(model, tree, plain, mirror_images=True)

    def losses(
        self,
        tree: SlotTree,
        student: torch.Tensor,
        teacher: torch.Tensor,
        weak: torch.Tensor,
        coded: torch.Tensor,
        readable: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed losses (consistency, weak): scalars, to be divided by `loss_counts`.

        Consistency is the Kullback-Leibler divergence of each AU's value distribution from the teacher's.

        Args:
            student, teacher: (pictures, V) log-probabilities of the tree's values.
            weak: (pictures, AUs of all formats) weak values from 0 to 1, NaN if unknown.
            coded: (pictures,) bool, True for pictures whose weak values are codes by eye.
            readable: (pictures,) bool, False for pictures without loss.
        """
        consistency = kl_div(student, teacher, log_target=True, reduction="none").sum(1)[readable].sum()
        losses = []
        of_format = weak.nan_to_num().split([len(fmt.labels) for fmt in self.formats], dim=1)
        for fmt, probabilities, values in zip(self.formats, tree.by_format(student.exp()), of_format, strict=True):
            shares = torch.tensor(fmt.value_numbers, device=weak.device) / fmt.value_numbers[-1]
            estimated = weak_loss((probabilities * shares).sum(-1), values)
            losses.append(torch.where(coded[:, None], code_loss(probabilities, values, fmt), estimated))
        return consistency, torch.cat(losses, dim=1)[_has_estimate(weak, readable)].sum()


def weak_loss(expected: torch.Tensor, estimates: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of expectations and estimates, both shares of the scale from 0 to 1, in the shape of the two.

    Where estimates of like faces contradict each other it is least at their mean. An absolute error is least at their
    median, and so would silence rare AUs.
    """
    return binary_cross_entropy_with_logits(expected.logit(eps=1e-6), estimates, reduction="none")


def code_loss(probabilities: torch.Tensor, codes: torch.Tensor, fmt: AUFormat) -> torch.Tensor:
    """The cross-entropy (pictures, AUs) of codes by eye and of what they tell apart.

    An intensity is known as far as the guide of the codes tells it: a slight movement is one of FACS's A or B. So the
    values of the scale that belong together are one class, and a code between two classes, such as the mean of
    observers who disagree, is shared out among them. On an occurrence scale a code is the probability of presence.

    Args:
        probabilities: (pictures, AUs, values) of the format's values.
        codes: (pictures, AUs), shares of the scale from 0 to 1.
    """
    if fmt.scale == "occurrence":
        classes, targets = probabilities, torch.stack([1 - codes, codes], dim=-1)
    else:
        shares = torch.tensor(fmt.value_numbers, device=codes.device) / fmt.value_numbers[-1]
        belongs = torch.bucketize(shares, torch.tensor(STARTS, device=codes.device), right=True)
        members = belongs == torch.arange(len(CLASSES), device=codes.device)[:, None]
        classes = probabilities @ members.T.to(probabilities.dtype)
        places = torch.tensor(CLASSES, device=codes.device)
        step = places[1] - places[0]
        targets = (1 - (codes.clamp(max=CLASSES[-1])[..., None] - places).abs() / step).clamp(min=0)
    return -(targets * classes.float().clamp(min=1e-6).log()).sum(-1)


def loss_counts(weak: torch.Tensor, readable: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of AUs that carry (consistency, weak) loss; arguments as in `UnlabelledFaces.losses`."""
    return readable.sum() * weak.shape[1], _has_estimate(weak, readable).sum()


def _has_estimate(weak: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
    """(pictures, AUs) bool: which weak values carry loss."""
    return ~weak.isnan() & readable[:, None]
