"""Published models for ``torch.hub``; the code is in ``adaface/inference/hub.py``."""

dependencies = ["torch", "numpy", "cv2", "safetensors"]

from adaface.inference.hub import adaface_ir18_casia as adaface_ir18_casia  # noqa: E402
from adaface.inference.hub import adaface_ir18_vgg2 as adaface_ir18_vgg2  # noqa: E402
from adaface.inference.hub import adaface_ir18_webface4m as adaface_ir18_webface4m  # noqa: E402
from adaface.inference.hub import adaface_ir50_casia as adaface_ir50_casia  # noqa: E402
from adaface.inference.hub import adaface_ir50_ms1mv2 as adaface_ir50_ms1mv2  # noqa: E402
from adaface.inference.hub import adaface_ir50_webface4m as adaface_ir50_webface4m  # noqa: E402
from adaface.inference.hub import adaface_ir101_ms1mv2 as adaface_ir101_ms1mv2  # noqa: E402
from adaface.inference.hub import adaface_ir101_ms1mv3 as adaface_ir101_ms1mv3  # noqa: E402
from adaface.inference.hub import adaface_ir101_webface4m as adaface_ir101_webface4m  # noqa: E402
from adaface.inference.hub import adaface_ir101_webface12m as adaface_ir101_webface12m  # noqa: E402
