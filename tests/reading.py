"""What the tests of readers read: records, their keys, values and frames."""

import numpy as np

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import Defects


def read(source):
    """Its records, and how often each kind of defect was found."""
    defects = Defects()
    defects.merge(source.defects.found)
    records = [record for clip in source.clips for record in source.read(clip, defects)]
    return records, {kind: each["count"] for kind, each in defects.found.items()}


def keys(records):
    return [(record["subject"], record["clip"], record["frame"], record["format"]) for record in records]


def level(record):
    """The number of the frame of `write_video` that an image shows."""
    return round(np.asarray(record["image"].open()).mean() / 10)


def values(record):
    return dict(zip(FORMATS[record["format"]].labels, record["values"], strict=True))
