"""The decision model: typed questions about one face, with a probability for every allowed answer.

Owns what a request of Transformers' decision interface (`pipeline("decision")`, `AutoModelForDecision`, and
`/v1/systemone` of `transformers serve`) may contain here, and how `recognize` answers it:

    {"state": "face",
     "assets": {"face": {"type": "image", "format": "png", "data_base64": "..."}},
     "questions": {
         "smile": {"type": "noul", "instructions": "bp4d AU12"},
         "how strong": {"type": "score", "instructions": {"au": "AU12", "format": "disfa"},
                        "criteria": ["absent", "trace", "slight", "marked", "severe", "maximum"]}}}

- Instructions name an AU and, optionally, a built-in format, as words or as a dict; without instructions the name of
  the question does. The model reads no other text, so other text is refused. The default format is the first of
  `MAIN_FORMATS` that has the AU, for a score the first of those whose scale is intensity or continuous.
- `noul` (yes or no) asks whether the AU is present; its answer is the calibrated `AUReading.probability`.
- `score` asks for the value. Its levels, lowest first, are the values of the scale (2 or 6); a continuous scale takes 2
  to 101 levels, spread evenly from 0.00 to 1.00, and every value counts toward the nearest one, halves upward.
- `choice` is refused: AUs do not exclude each other.

All questions of a request are answered by one forward pass, with mirror images and calibration as the checkpoint
configures them. Nothing is fetched: an image is the content of a file, or in Python an image or a `pathlib.Path`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from PIL import Image
from transformers.decision.configuration_utils import DecisionConfig
from transformers.decision.modeling_utils import DecisionMixin
from transformers.decision.template_utils import Question, parse_questions

from .action_units import ACTION_UNITS, FORMATS, MAIN_FORMATS, AUFormat, shown
from .calibration_au_llava import calibrate, probability_of_presence
from .decoding_au_llava import evaluation_mode, pixels_of, read_slots
from .pictures_au_llava import from_base64
from .slot_tree_au_llava import compile_slots

# As in handler.py, which works without this file; a test compares them.
MAX_BYTES = 20 * 2**20  # of an image file in a request
MAX_PIXELS = 25_000_000  # a small file can contain an image that fills the memory
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for some others Pillow runs a program (EPS)
EXAMPLE = '{"face": {"type": "image", "format": "png", "data_base64": "..."}}'
MOST_LEVELS = max(len(fmt.value_strings) for fmt in FORMATS.values())
KEPT_LENGTH = 2**16  # characters: the questions of longer requests are read anew each time


@dataclass(frozen=True)
class AUQuestion:
    """A question as this model understands it.

    Attributes:
        format: the format that is read, a built-in one.
        label: the AU, one of `format.labels`.
        levels: per value of the format's scale, the level of a `score` that it counts toward; None for a `noul`.
    """

    format: AUFormat
    label: str
    levels: tuple[int, ...] | None

    def probabilities(self, distribution: np.ndarray, presence: float, options: list[str]) -> Sequence[float]:
        """The probability of every option, in the order of `options`: true and false, or the levels.

        Args:
            distribution: (values,), calibrated, of the AU over the scale of the format.
            presence: the share of it that counts as present.
        """
        if self.levels is None:
            return [presence if option == "true" else 1 - presence for option in options]
        if len(options) == len(distribution):  # every value is a level
            return distribution
        return np.bincount(self.levels, weights=distribution, minlength=len(options))


@dataclass(frozen=True)
class AUQuestions:
    """The questions of a request, as Transformers and as this model understand them.

    Attributes:
        questions: as Transformers has parsed them.
        asked: the same, in the same order.
        formats: all formats that they need.
    """

    questions: list[Question]
    asked: list[AUQuestion]
    formats: tuple[AUFormat, ...]


def understand_all(text: str, noul_options: Sequence[str]) -> AUQuestions:
    """What the questions of a request, as JSON, ask. Who sends the same again, about another face, waits for less.

    Raises:
        ValueError: a sentence for every question that is none, or that this model cannot answer.
    """
    understood = _understood if len(text) <= KEPT_LENGTH else _understood.__wrapped__
    return understood(text, tuple(noul_options))


@lru_cache(maxsize=64)
def _understood(text: str, noul_options: tuple[str, ...]) -> AUQuestions:
    questions = parse_all(json.loads(text), list(noul_options))
    asked, problems = [], []
    for question in questions:
        try:
            asked.append(understand(question))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    formats = tuple(fmt for fmt in FORMATS.values() if any(each.format is fmt for each in asked))
    return AUQuestions(questions, asked, formats)


def parse_all(questions: dict, noul_options: list[str]) -> list[Question]:
    """As Transformers parses them, with as many levels as a continuous scale has values.

    Raises:
        ValueError: a sentence for every question that is not one.
    """
    levels = [str(level) for level in range(MOST_LEVELS)]
    config = DecisionConfig(labels={"score": levels, "choice": levels}, noul_options=noul_options)
    try:
        return parse_questions(questions, config)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"questions map names to questions; {shown(questions)} arrived ({error}).") from error


def understand(question: Question) -> AUQuestion:
    """What a question that Transformers has parsed asks.

    Raises:
        ValueError: anything that this model cannot answer, in one sentence.
    """
    try:
        check_text(question.name)
        if question.type == "choice":
            raise ValueError("a choice has one right answer, but AUs can be present together: ask a noul for each AU.")
        label, fmt = named_au(question.name if question.instructions is None else question.instructions)
        if fmt is None:
            fmt = default_format(label, question.type)
        if label not in fmt.labels:
            raise ValueError(f"format {fmt.name} has no {label}; its AUs are {', '.join(fmt.labels)}.")
        if question.type == "score":
            return AUQuestion(fmt, label, levels_of(question.descriptions, fmt))
        if any(description is not None for description in question.descriptions):
            raise ValueError("a noul asks whether the AU is present and reads no criteria: leave them out.")
        return AUQuestion(fmt, label, None)
    except ValueError as error:
        raise ValueError(f"Question {shown(question.name)}: {error}") from error


def named_au(instructions: str | dict | list) -> tuple[str, AUFormat | None]:
    """The AU and the format, if any, that instructions name."""
    usage = 'instructions name one AU and, optionally, a format, such as "disfa AU12"'
    if isinstance(instructions, str):
        words = instructions.split()
        names = [word for word in words if word.lower() in FORMATS]
        labels = [word for word in words if word.lower() not in FORMATS]
    elif isinstance(instructions, dict) and "au" in instructions and instructions.keys() <= {"au", "format"}:
        labels, names = [instructions["au"]], [instructions["format"]] if "format" in instructions else []
    else:
        labels = names = []
    if len(labels) != 1 or len(names) > 1 or not all(isinstance(word, str) for word in labels + names):
        raise ValueError(f"{usage}, and no other text; {shown(instructions)} arrived.")
    [label], [name] = labels, names or [None]
    if label.upper() not in ACTION_UNITS:
        raise ValueError(f"{usage}; {shown(label)} is neither an AU nor a format ({', '.join(FORMATS)}).")
    if name is not None and name.lower() not in FORMATS:
        raise ValueError(f"{shown(name)} is not a format; choose one of {', '.join(FORMATS)}.")
    return label.upper(), None if name is None else FORMATS[name.lower()]


def default_format(label: str, kind: str) -> AUFormat:
    """The format that a question of this kind reads if it names none."""
    for name in MAIN_FORMATS:
        if label in FORMATS[name].labels and (kind == "noul" or FORMATS[name].scale != "occurrence"):
            return FORMATS[name]
    having = [name for name, fmt in FORMATS.items() if label in fmt.labels]
    if having:
        raise ValueError(f'name the format, such as "{having[0]} {label}": {", ".join(having)} have this AU.')
    raise ValueError(f"no format has {label}.")


def levels_of(criteria: list, fmt: AUFormat) -> tuple[int, ...]:
    """Per value of the scale, the level that it counts toward."""
    count, values = len(criteria), len(fmt.value_numbers)
    fitting = 2 <= count <= values if fmt.scale == "continuous" else count == values
    if not fitting:
        wanted = f"2 to {values}" if fmt.scale == "continuous" else f"{values}"
        raise ValueError(
            f"a score in format {fmt.name} has {wanted} levels, from {fmt.value_strings[0]} to "
            f"{fmt.value_strings[-1]}; {count} arrived."
        )
    for index, level in enumerate(criteria):
        check_text(level)
        check_level(level, index / (count - 1) * fmt.value_numbers[-1])
    return tuple((2 * index * (count - 1) + values - 1) // (2 * (values - 1)) for index in range(values))


def check_text(text: object) -> None:
    """Raise ValueError for what an answer in JSON cannot repeat."""
    if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"names and levels must be Unicode text; {shown(text)} arrived.")


def check_level(level: str, value: float) -> None:
    """Raise ValueError for a level that is a number but not the level's value."""
    try:
        number = float(level)
    except ValueError:
        return
    if not abs(number - value) <= 0.0051:  # the values of a scale have two decimals; NaN is refused too
        raise ValueError(f"levels go up evenly, lowest first: level {shown(level)} stands where {value:.2f} belongs.")


def find_image(state: object, assets: Mapping | None) -> Image.Image:
    """The one image of a request, opened.

    Raises:
        ValueError: no image, several, one that cannot be read, or a state that contains anything but its name.
    """
    if assets is not None and not isinstance(assets, Mapping):
        raise ValueError(f"assets must be an object such as {EXAMPLE}; {shown(assets)} arrived.")
    if not assets:
        raise ValueError(f"There is no image: put one into assets, as in {EXAMPLE}, and its name into state.")
    if len(assets) > 1:
        raise ValueError(f"{len(assets)} images arrived; a request is about one face: send a request for each.")
    [(name, asset)] = assets.items()
    leaves, values = [], [state]
    while values:  # not recursive: a request can be nested deeply
        value = values.pop()
        if isinstance(value, (dict, list)):
            values.extend(value.values() if isinstance(value, dict) else value)
        else:
            leaves.append(value)
    if len(leaves) != 1 or not isinstance(leaves[0], str) or leaves[0].strip() != name:
        raise ValueError(
            f"state must be the name of the image, {shown(name)}, and nothing else, since the model reads no text; "
            f"{shown(state) if len(leaves) < 20 else f'{len(leaves)} values'} arrived."
        )
    return open_asset(name, asset)


def open_asset(name: str, asset: object) -> Image.Image:
    """The image of an asset: the content of a file in base64, or in Python what `recognize` takes, but no string."""
    if isinstance(asset, str):
        raise ValueError(
            f"asset {shown(name)} is a string; nothing is fetched or read from disk for a request: send the content of "
            f"the file, as in {EXAMPLE}, or in Python an image or a pathlib.Path."
        )
    if isinstance(asset, (list, tuple)):
        raise ValueError(f"asset {shown(name)} must be one image; a {type(asset).__name__} arrived.")
    if not isinstance(asset, Mapping):
        return asset  # `recognize` opens it, or says what it takes
    content = asset.get("data_base64")
    if asset.get("type", "image") != "image" or not isinstance(content, str):
        raise ValueError(f"asset {shown(name)} must be an image, as in {EXAMPLE}; {shown(asset)} arrived.")
    if len(content) * 3 // 4 > MAX_BYTES:
        raise ValueError(f"asset {shown(name)} has more than {MAX_BYTES:,} bytes: make it smaller.")
    try:
        file = io.BytesIO(from_base64(content))
    except ValueError as error:
        raise ValueError(
            f"asset {shown(name)} is not base64: send the content of the file, not its address."
        ) from error
    return open_file(name, file)


def open_file(name: str, file: io.BytesIO) -> Image.Image:
    """The one image in the content of a file; too large a one is refused before it is decoded."""
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
        pixels, count = image.width * image.height, 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if pixels <= MAX_PIXELS and count == 1:
            image.load()
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        problem = str(error).partition("<_io")[0].strip()
        raise ValueError(
            f"asset {shown(name)} cannot be read as an image: send the content of a {', '.join(IMAGE_FORMATS)} file "
            f"({problem})."
        ) from error
    if pixels > MAX_PIXELS:
        raise ValueError(f"asset {shown(name)} has {pixels:,} pixels; {MAX_PIXELS:,} are allowed: make it smaller.")
    if count > 1:
        raise ValueError(f"asset {shown(name)} contains {count} images, an animation or pages: send one.")
    image.filename = f"asset {shown(name)}"  # how errors name it
    return image


def parse_request(request: dict | str) -> dict:
    """The request as a dict that has questions and a state."""
    if isinstance(request, str):
        try:
            request = json.loads(request)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The request is not JSON: {error}.") from error
    if not isinstance(request, dict) or "questions" not in request or "state" not in request:
        raise ValueError(
            f'A request is {{"state": ..., "assets": ..., "questions": {{name: question}}}}; {shown(request)} arrived.'
        )
    return request


def check_names(questions: object) -> None:
    """Raise ValueError for names that JSON would turn into text: 1 and "1" would be one question."""
    named = [name for name in questions if not isinstance(name, str)] if isinstance(questions, dict) else []
    if named:
        raise ValueError(f"names of questions must be text; {', '.join(map(shown, named))} arrived.")


@strict
@dataclass
class AuDecisionConfig(DecisionConfig):
    """The decision config of AU-LLaVA, saved as `decision.json` and `decision_template.jinja`.

    The two files describe one-token questions to whoever reads them by Transformers' own route, a pass for every
    question (decision_template_au_llava.py); `prepare_inputs` prepares all questions of a request at once.
    `temperature` is applied after the checkpoint's calibration; it is 1 unless you set it.
    """

    labels: dict[str, list[str]] = field(
        default_factory=lambda: {"noul": ["1", "0"], "score": ["0", "1", "2", "3", "4", "5"]}
    )
    sanitize_control_tokens: bool = False  # the template prints nothing of the request

    def prepare_inputs(self, request: dict | str, processor) -> list[tuple[dict, list[Question]]]:
        """One prompt for all questions of `request`, a dict or its JSON: (arguments of `decide`, the questions).

        Args:
            processor: the `AuLlavaProcessor` of the model.

        Raises:
            ValueError: whatever is wrong with the request; a sentence for every question that is.
        """
        if getattr(processor, "image_processor", None) is None:
            raise ValueError("Questions about a face need the model's processor, not its tokenizer alone.")
        request = parse_request(request)
        check_names(request["questions"])
        try:
            text = json.dumps(request["questions"])
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"questions are JSON; {shown(request['questions'])} arrived ({error}).") from error
        understood = understand_all(text, self.noul_options)
        image = find_image(request["state"], request.get("assets"))
        size = processor.image_processor.crop_size
        tokens = processor.num_image_tokens(size["height"], size["width"])
        tree = compile_slots(processor, understood.formats, tokens)
        inputs = {
            "input_ids": tree.input_ids[None],
            "marks": tree.decision_nodes + 1,  # Transformers reads at the token before a mark
            "image": image,
            "processor": processor,
            "understood": understood,
        }
        return [(inputs, understood.questions)]


class AuDecisionMixin(DecisionMixin):
    """`decide` for AU-LLaVA, and its decision config, loaded and saved with the model."""

    def post_init(self):
        """As in Transformers."""
        super().post_init()
        self.decision_config = AuDecisionConfig()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, decision_config=None, **kwargs):
        """As in Transformers, without looking for a decision head: the language model's own head answers."""
        loaded = super(DecisionMixin, cls).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info, a pair
        if decision_config is None:
            names = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
            hub = {name: kwargs[name] for name in names if name in kwargs}
            decision_config = AuDecisionConfig.from_pretrained(
                pretrained_model_name_or_path, _raise_exceptions_for_connection_errors=False, **hub
            )
        model.decision_config = decision_config
        return loaded

    @torch.no_grad()
    def decide(
        self,
        input_ids: torch.LongTensor,
        marks: torch.LongTensor,
        decision_questions: list[Question],
        decision_config: DecisionConfig | None = None,
        image=None,
        processor=None,
        understood: AUQuestions | None = None,
        **kwargs,
    ) -> list[torch.Tensor]:
        """Answer all questions of a request by one forward pass.

        Args: those that `decision_config.prepare_inputs(request, processor)` returns.

        Returns:
            per question the log-probability of every option (float64); `Question.answer` takes their softmax.

        Raises:
            ValueError: inputs that another decision config prepared; an image that cannot be read.
        """
        if understood is None:
            raise ValueError(
                "These inputs were not made by the model's own decision config: call "
                "model.decision_config.prepare_inputs, and give the pipeline or server no decision config."
            )
        try:
            with evaluation_mode(self):
                read = read_slots(self, processor, pixels_of(self, processor, [image]), understood.formats)
        except OSError as error:  # a path in Python that leads to no file
            raise ValueError(str(error)) from error
        readings = {}
        for fmt in understood.formats:
            [rows], _ = calibrate(read[fmt.name].numpy(), fmt, self.config.calibration)
            pairs = zip(rows, probability_of_presence(rows, fmt).tolist(), strict=True)
            readings |= {(fmt.name, label): pair for label, pair in zip(fmt.labels, pairs, strict=True)}
        probabilities = [
            au.probabilities(*readings[au.format.name, au.label], question.options)
            for question, au in zip(decision_questions, understood.asked, strict=True)
        ]
        return scores_of(probabilities, decision_questions, input_ids, decision_config or self.decision_config)


def scores_of(probabilities: list, questions: list[Question], input_ids, config: DecisionConfig) -> list[torch.Tensor]:
    """Log-probabilities (options,) of each question, after the logits processors of `config`, kind by kind."""
    kinds: dict[tuple[str, int], list[int]] = {}
    for index, question in enumerate(questions):
        kinds.setdefault((question.type, len(question.options)), []).append(index)
    scores = [None] * len(questions)
    for (kind, _), indices in kinds.items():
        logs = torch.from_numpy(np.array([probabilities[index] for index in indices])).log()
        for index, row in zip(indices, config.logits_processors[kind](input_ids, logs), strict=True):
            scores[index] = row
    return scores


__all__ = ["AUQuestion", "AUQuestions", "AuDecisionConfig", "AuDecisionMixin", "understand"]
