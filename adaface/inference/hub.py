"""Entry points for ``torch.hub``: one for each published model, listed in ``hubconf.py``.

    model = torch.hub.load("<this repository>", "adaface_ir50_webface4m", source="local")
    embeddings, norms = model(images)

Source: https://docs.pytorch.org/docs/stable/hub.html; the models are those of the official AdaFace repository.
"""

from collections.abc import Callable

from adaface.checkpoints.download import find_model
from adaface.checkpoints.published import PublishedModel, published_by_name
from adaface.inference.embedder import load_pretrained_model
from adaface.models.backbone import Backbone
from adaface.models.registry import build_model

_DOCSTRING = """{arch} trained with AdaFace on {data}.

Args:
    pretrained: load the published weights, downloading them if they are not on this machine (``pip install gdown``);
        False returns the network with random weights, without a download.

Returns:
    The network in evaluation mode, on the CPU. ``model(images)`` takes (B, 3, 112, 112) float32 images of aligned
    faces, in BGR order, normalized to [-1, 1] as ``(pixels - 127.5) / 127.5``. It returns unit embeddings (B, 512)
    and their norms (B, 1), which measure image quality.

Raises:
    RuntimeError: the weights cannot be downloaded; the message says how to get them by hand.
    ValueError: the file is not this model.
"""


def entry_point(name: str) -> Callable[..., Backbone]:
    """Return the function that builds a published model.

    Args:
        name: file name of the model without extension, such as ``adaface_ir50_webface4m``.

    Raises:
        ValueError: there is no such published model.
    """
    published: PublishedModel = published_by_name(name)

    def build(pretrained: bool = True) -> Backbone:
        if pretrained:
            return load_pretrained_model(published.arch, find_model(published.stem))
        return build_model(published.arch).eval()

    build.__name__ = build.__qualname__ = published.stem
    build.__doc__ = _DOCSTRING.format(arch=published.arch, data=published.data)
    return build


adaface_ir18_casia = entry_point("adaface_ir18_casia")
adaface_ir18_vgg2 = entry_point("adaface_ir18_vgg2")
adaface_ir18_webface4m = entry_point("adaface_ir18_webface4m")
adaface_ir50_casia = entry_point("adaface_ir50_casia")
adaface_ir50_ms1mv2 = entry_point("adaface_ir50_ms1mv2")
adaface_ir50_webface4m = entry_point("adaface_ir50_webface4m")
adaface_ir101_ms1mv2 = entry_point("adaface_ir101_ms1mv2")
adaface_ir101_ms1mv3 = entry_point("adaface_ir101_ms1mv3")
adaface_ir101_webface4m = entry_point("adaface_ir101_webface4m")
adaface_ir101_webface12m = entry_point("adaface_ir101_webface12m")
