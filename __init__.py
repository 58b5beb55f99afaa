"""AU-LLaVA reads facial action units from face images. Import from its modules, such as `au_llava.action_units`."""

import os

# ONNX Runtime's wheels (from 1.32 on) keep a session id in the temporary folder and report to their maker.
# Nobody is called unless the user asked for it; a value that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
