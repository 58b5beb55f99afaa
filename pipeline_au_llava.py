"""The pipeline of `transformers.pipeline("au-recognition", model=..., trust_remote_code=True)`.

Owns what goes in; readings_au_llava.py makes the dicts that come out. The slots decoder (decoding_au_llava.py) reads
the distributions: one forward pass for a batch of images and all formats. Only here may an image be a URL, as in all
pipelines of Transformers.
"""

from transformers import Pipeline

from .action_units import MAIN_FORMATS
from .decoding_au_llava import read_slots
from .pictures_au_llava import load_face_image
from .readings_au_llava import check_choice, chosen_formats, ranked, slot_answers

DEFAULT_FORMATS = chosen_formats(MAIN_FORMATS)


class AURecognitionPipeline(Pipeline):
    """Reads action units (AUs) from aligned face images.

        recognizer = pipeline("au-recognition", model=REPO, trust_remote_code=True)
        recognizer("face.png", formats="disfa", top_k=1)
        # [{"label": "AU12", "score": ..., "name": "lip corner puller", "format": "disfa", "value": ..., ...}]

    With a loaded model: `AURecognitionPipeline(model=model, processor=processor)`. Arguments of a call can also be
    given to `pipeline`, for all calls.
    """

    _load_processor = True  # with the tokenizer and the image processor
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model, *args, device=None, **kwargs):
        """As in Transformers, and also for models that accelerate has placed, even on disk."""
        places = None
        if device is None and (hasattr(model, "hf_device_map") or hasattr(model, "_hf_hook")):
            # Transformers takes the first place in the map, but "disk" is not a device.
            device, places = model.device, vars(model).pop("hf_device_map", None)
        try:
            super().__init__(model, *args, device=device, **kwargs)
        finally:
            if places is not None:
                model.hf_device_map = places
        if self.processor is None:
            raise ValueError("There is no processor: pass the model's, processor=AutoProcessor.from_pretrained(...).")

    def __call__(self, inputs, **kwargs):
        """Read the AUs of one or several images, each showing one aligned face.

        Args:
            inputs: an image (a path, an http(s) URL, a PIL image or anything else that `load_face_image` opens), or a
                list, tuple, generator or `Dataset` of images.
            formats: one format or a sequence, each a name, an `AUFormat` or its dict (default: one per scale, which is
                bp4d, disfa and feafa).
            top_k: how many AUs per image, those with the highest scores (default: all).
            threshold: the score, 0 to 1, from which every AU counts as present (default: each AU's calibrated
                threshold, 0.5 without calibration). AUs below it are returned too.
            mirror_images: whether the mirror image of each face is read too, and the mean given: more accurate, and up
                to twice as slow (default: as the checkpoint says).
            batch_size: images per forward pass (default: 1). It does not change the answers.

        Returns:
            for one image a list of dicts, highest score first; for a list or tuple of images a list of such lists; for
            a generator or a `Dataset` an iterator over such lists. An AU in several formats appears once per format.
            Each dict holds

            - `label`: "AU12", "AU43L", ...; `name`: "lip corner puller", ...
            - `score`: the probability, 0 to 1, that the AU is present as its format defines presence.
            - `format`: the name of the format, on whose scale the following values are.
            - `value`: the most probable value; on the occurrence scale, 1 if present.
            - `expected`, `median`: mean and median of the distribution over the values.
            - `present`: whether the score reaches the threshold.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no image, an unreadable image, an unknown format, `top_k` below 1, `threshold` outside 0 to 1,
                or `mirror_images` that is neither true nor false.
        """
        if isinstance(inputs, tuple):  # Transformers takes several inputs only as a list
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            raise ValueError("There is no image to read: an empty list arrived.")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, formats=None, top_k=None, threshold=None, mirror_images=None):
        forward, postprocess = {}, {}
        if formats is not None:
            forward["formats"] = postprocess["formats"] = chosen_formats(formats)
        check_choice(top_k, threshold, mirror_images)
        if mirror_images is not None:
            forward["mirror_images"] = mirror_images
        chosen = {"top_k": top_k, "threshold": threshold}
        postprocess |= {name: value for name, value in chosen.items() if value is not None}
        return {}, forward, postprocess

    def preprocess(self, image):
        pixels = self.image_processor(load_face_image(image, allow_urls=True), return_tensors="pt")
        return pixels.to(self.dtype)

    def _forward(self, pixels, formats=DEFAULT_FORMATS, mirror_images=None):
        self.model.eval()  # in training mode, normalization would depend on the batch
        return read_slots(self.model, self.processor, pixels["pixel_values"], formats, mirror_images)

    def postprocess(self, read, formats=DEFAULT_FORMATS, top_k=None, threshold=None):
        [answers] = slot_answers(read, formats, self.model.config.calibration, threshold)
        return ranked(answers, top_k)

    def save_pretrained(self, save_directory, **kwargs):
        """Save the whole checkpoint; Transformers' own method omits the processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["AURecognitionPipeline"]
