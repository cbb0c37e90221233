import pytest
import torch

from adaface.models.input_format import InputFormat, normalize_images


def test_normalize_images_keeps_the_color_order_and_scales_to_one() -> None:
    images = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    images[..., 2] = 255  # red, in BGR
    images[0, 5, 7] = torch.tensor([51, 102, 204], dtype=torch.uint8)
    got = normalize_images(images)
    assert got.shape == (1, 3, 112, 112)
    assert got[0, :, 0, 0].tolist() == [-1.0, -1.0, 1.0]
    assert got[0, :, 5, 7].tolist() == pytest.approx([-0.6, -0.2, 0.6])
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert images[0, 0, 0].tolist() == [0, 0, 255]
    assert normalize_images(images, torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    "found",
    [{"color": "YUV"}, {"size": [224, 224]}, {"std": 0}, {"mean": "grey"}, {"mean": 10**400}, {"std": float("inf")}],
)
def test_a_format_that_is_not_known_is_refused(found):
    with pytest.raises(ValueError, match="has an unsupported input format"):
        InputFormat.of(found, "x.ckpt")
