"""What commands say of an error, above all where the cache of Hugging Face's libraries cannot be written.

A checkpoint's code is copied into that cache before it runs, so that a home that is read-only stops every command that
loads one.
"""

import errno
from pathlib import Path

from huggingface_hub import constants

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


def sentence_of(error: BaseException) -> str:
    """`str(error)`, or how to move the cache, if `error` or what raised it says that the cache cannot be written."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.filename is not None and _stops_caching(cause):
            return (
                f"{cause.filename} cannot be written ({cause.strerror}), where Hugging Face's libraries keep what they "
                "load and its code: set HF_HOME to a folder that can be, such as HF_HOME=./huggingface."
            )
        cause = cause.__cause__ or cause.__context__
    return str(error)


def _stops_caching(error: OSError) -> bool:
    """Whether a folder of the cache, or one that holds the cache, cannot be made or written."""
    from transformers.dynamic_module_utils import HF_MODULES_CACHE  # slow to import, needed when something is wrong

    path = Path(error.filename).absolute()
    folders = [Path(each).absolute() for each in (constants.HF_HOME, constants.HF_HUB_CACHE, HF_MODULES_CACHE)]
    if any(folder.is_relative_to(path) for folder in folders):
        return error.errno in (*UNWRITABLE, errno.ENOENT)
    return error.errno in UNWRITABLE and any(path.is_relative_to(folder) for folder in folders)
