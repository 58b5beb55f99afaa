"""Runs the small networks that look at faces: ONNX Runtime, each run on one thread."""


def open_network(content: bytes):
    """An `InferenceSession` for the content of an ONNX file. Threads may share it.

    Raises:
        ValueError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError as error:
        raise ValueError(MISSING.format("ONNX Runtime")) from error
    options = SessionOptions()
    options.intra_op_num_threads = 1  # several pictures are looked at at once instead
    options.log_severity_level = 3  # errors: YuNet's answers have other sizes than its file declares
    return InferenceSession(content, options, providers=["CPUExecutionProvider"])


MISSING = (
    "Detecting faces needs {}: pip install 'au-llava[recognize]'. Or give --no-detect for pictures that are face crops "
    "already, or --faces for a table of the faces."
)
