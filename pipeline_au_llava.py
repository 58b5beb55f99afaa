"""The pipeline that `transformers.pipeline("au-recognition", model=..., trust_remote_code=True)` makes of a checkpoint.

Owns what goes into it and the dicts that come out. Answers are read by the slots decoder (decoding_au_llava.py): one
forward pass for a batch of images and all formats. Unlike everywhere else in this project an image may be a URL, as in
all pipelines of Transformers: whoever writes one asks for it to be fetched.
"""

from numbers import Integral, Real

from transformers import Pipeline

from .action_units import ACTION_UNITS, MAIN_FORMATS
from .decoding_au_llava import chosen_formats, read_slots, slot_answers
from .image_processing_au_llava import load_face_image

DEFAULT_FORMATS = chosen_formats(MAIN_FORMATS)


class AURecognitionPipeline(Pipeline):
    """Reads the action units (AUs) of aligned face images.

        recognizer = pipeline("au-recognition", model=REPO, trust_remote_code=True)
        recognizer("face.png", formats="disfa", top_k=1)
        # [{"label": "AU12", "score": ..., "name": "lip corner puller", "format": "disfa", "value": ..., ...}]

    With a model in hand: `AURecognitionPipeline(model=model, processor=processor)`. Arguments of a call can be given to
    `pipeline` as well, and then hold for every call.
    """

    _load_processor = True  # it holds the tokenizer and the image processor
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model, *args, device=None, **kwargs):
        """As in Transformers, for a model that accelerate has placed too, be it on disk."""
        places = None
        if device is None and (hasattr(model, "hf_device_map") or hasattr(model, "_hf_hook")):
            # Where it computes: Transformers takes the first place of the map, and "disk" is no device.
            device, places = model.device, vars(model).pop("hf_device_map", None)
        try:
            super().__init__(model, *args, device=device, **kwargs)
        finally:
            if places is not None:
                model.hf_device_map = places
        if self.processor is None:
            raise ValueError("There is no processor: pass the model's, processor=AutoProcessor.from_pretrained(...).")

    def __call__(self, inputs, **kwargs):
        """Read the AUs of one image or of several.

        Args:
            inputs: an image (a path, an http(s) URL, a PIL image or anything else that `load_face_image` opens), each
                showing one aligned face; or a list, a tuple, a generator or a `Dataset` of images.
            formats: a format or a sequence of formats, by name, as `AUFormat` or as its dict. By default one of every
                scale: bp4d, disfa and feafa.
            top_k: at most so many AUs an image, those of the highest scores; by default all.
            threshold: the score, 0 to 1, from which on every AU counts as present. By default each AU has its own:
                what the checkpoint was calibrated to, 0.5 if it was not. No AU is left out because of it.
            batch_size: images per forward pass, 1 by default. Answers do not depend on it.

        Returns:
            for one image a list of dicts, the highest score first; a list of such lists for a list or a tuple of
            images, and such lists one by one for a generator or a `Dataset`. An AU that several of the formats have
            appears once for each. The dicts hold

            - `label`: of the AU, such as "AU12" or "AU43L"; `name`: what it is called, such as "lip corner puller".
            - `score`: the probability, 0 to 1, that the AU is present, as its format understands presence.
            - `format`: the name of the format that the values below are of.
            - `value`: the most probable value on the format's scale; on the occurrence scale, 1 if present.
            - `expected`, `median`: mean and median of the distribution over the format's scale.
            - `present`: whether the score reaches the threshold.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no image, one that cannot be read, an unknown format, `top_k` below 1, or `threshold` outside
                0 to 1.
        """
        if isinstance(inputs, tuple):  # Transformers takes lists only for several inputs
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            raise ValueError("There is no image to recognise: an empty list arrived.")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, formats=None, top_k=None, threshold=None):
        forward, postprocess = {}, {}
        if formats is not None:
            forward["formats"] = postprocess["formats"] = chosen_formats(formats)
        if top_k is not None:
            if not (isinstance(top_k, Integral) and top_k >= 1):
                raise ValueError(f"top_k is {top_k!r}; it must be a whole number from 1 on, or None for all AUs.")
            postprocess["top_k"] = top_k
        if threshold is not None:
            if not (isinstance(threshold, Real) and 0 <= threshold <= 1):
                raise ValueError(
                    f"threshold is {threshold!r}; it must be a number from 0 to 1, or None for the checkpoint's own."
                )
            postprocess["threshold"] = threshold
        return {}, forward, postprocess

    def preprocess(self, image):
        pixels = self.image_processor(load_face_image(image, allow_urls=True), return_tensors="pt")
        return pixels.to(self.dtype)

    def _forward(self, pixels, formats=DEFAULT_FORMATS):
        self.model.eval()  # one that is being trained would normalise by the batch
        return read_slots(self.model, self.processor, pixels["pixel_values"], formats)

    def postprocess(self, read, formats=DEFAULT_FORMATS, top_k=None, threshold=None):
        [answers] = slot_answers(read, formats, self.model.config.calibration, threshold)
        found = [
            {
                "label": label,
                "score": reading.probability,
                "name": ACTION_UNITS[label].name,
                "format": answer.format.name,
                "value": reading.value,
                "expected": reading.expected,
                "median": reading.median,
                "present": reading.present,
            }
            for answer in answers
            for label, reading in answer.items()
        ]
        found.sort(key=lambda au: au["score"], reverse=True)
        return found[:top_k]

    def save_pretrained(self, save_directory, **kwargs):
        """Save the whole checkpoint; Transformers' own method would leave the processor out."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["AURecognitionPipeline"]
