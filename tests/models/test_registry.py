import json
from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from adaface.models.names import ARCHITECTURE_NAMES
from adaface.models.registry import ARCHITECTURES, build_model, count_macs


def test_the_registry_holds_the_official_names_and_the_small_ones(golden: Path) -> None:
    official = json.loads((golden / "net_keys.json").read_text())
    assert [*official, "ir_mini", "mobilefacenet"] == list(ARCHITECTURES) == list(ARCHITECTURE_NAMES)


def test_unknown_name_gives_the_nearest_and_all() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown architecture 'ir50'; did you mean ir_50\? choose from: ir_18, .*ir_mini.* timm:<name>",
    ):
        build_model("ir50")
    with pytest.raises(ValueError, match=r"'vit'; choose from: ir_18"):
        build_model("vit")


def test_count_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 56 * 56, 5)).train()
    assert count_macs(model) == 56 * 56 * 4 * 27 + 4 * 56 * 56 * 5
    assert model.training
    assert not model[0]._forward_hooks


def test_count_macs_counts_attention_too() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 28, 28)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).mT  # (B, 16, 8)
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    assert count_macs(Attention()) == 16 * 8 * 3 * 28 * 28 + 2 * 16 * 16 * 8
