"""What is frozen does not move, and what is far from the output moves less."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adaface.config.options import HeadOptions, OptimizerOptions
from adaface.models.backbone import Backbone
from adaface.training.freezing import freeze, frozen_modules, learning_rate_scales
from adaface.training.optimization import LR_SCALE, build_optimizer
from train_val import FaceRecognitionModule


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([0, 1, 2, 0])


def one_step(module: FaceRecognitionModule, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    module.train()
    optimizer = module.configure_optimizers()["optimizer"]
    embeddings, norms = module(batch[0])
    module.head.loss(embeddings, norms, batch[1]).backward()
    optimizer.step()


def test_a_network_without_stages_is_refused():
    network = Backbone()
    for use in (lambda: freeze(network, 1, batch_norm=False), lambda: learning_rate_scales(network, 0.5)):
        with pytest.raises(ValueError, match="Backbone does not define stages: omit --freeze_stages and"):
            use()
    freeze(network, 0, batch_norm=True)
    assert learning_rate_scales(network, 1.0) == {}


def test_more_stages_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"--freeze_stages 5, but the network has 4 stages: give 0 to 4"):
        FaceRecognitionModule("ir_mini", optimizer=OptimizerOptions(freeze_stages=5))


@pytest.mark.parametrize(("stages", "batch_norm"), [(2, False), (0, True), (4, True)])
def test_what_is_frozen_keeps_every_bit_and_the_rest_moves(stages, batch_norm, batch):
    torch.manual_seed(1)
    options = OptimizerOptions(lr=0.1, freeze_stages=stages, freeze_batch_norm=batch_norm)
    module = FaceRecognitionModule("ir_mini", 3, HeadOptions(m=0.4, h=0.333), options)
    frozen = {
        id(tensor)
        for part in frozen_modules(module.model, stages, batch_norm=batch_norm)
        for tensor in (*part.parameters(), *part.buffers())
    }
    before = {name: value.clone() for name, value in module.state_dict().items()}
    one_step(module, batch)
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    for name, value in tensors.items():
        same = torch.equal(value, before[name])
        if id(value) in frozen:
            assert same, name
            assert value.grad is None, name
        elif name not in ("head.t",):
            assert not same, name
    assert frozen


def test_a_parameter_of_no_stage_is_frozen_with_the_input_and_moves_least():
    class Positions(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(3))
            self.parts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        @property
        def stages(self):
            return tuple((part,) for part in self.parts)

    network = Positions()
    scales = learning_rate_scales(network, 0.5)
    assert scales[network.position] == scales[network.parts[0].weight] == 0.25
    freeze(network, 1, batch_norm=False)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"parts.2.weight", "parts.2.bias"}


def test_frozen_batch_norms_stay_in_evaluation_mode():
    module = FaceRecognitionModule("ir_mini", optimizer=OptimizerOptions(freeze_batch_norm=True))
    module.eval()
    module.train()
    assert module.model.output_layer[1].training, "dropout is at work"
    assert not any(part.training for part in module.modules() if isinstance(part, _BatchNorm))
    module = FaceRecognitionModule("ir_mini", optimizer=OptimizerOptions(freeze_stages=1)).train()
    assert not module.model.body[0].training
    assert module.model.body[1].training


def test_the_learning_rate_falls_from_stage_to_stage_towards_the_input(batch):
    module = FaceRecognitionModule("ir_mini", 3, optimizer=OptimizerOptions(lr=0.2, layer_lr_decay=0.5))
    optimizer = module.configure_optimizers()["optimizer"]
    rate_of = {p: (g[LR_SCALE], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert set(rate_of) == set(module.parameters())
    names = {parameter: name for name, parameter in module.named_parameters()}
    expected = {"head": 1.0, "model.output_layer": 1.0, "model.input_layer": 0.5**5}
    expected |= {f"model.body.{stage}": 0.5 ** (4 - stage) for stage in range(4)}
    for parameter, (scale, _) in rate_of.items():
        (start,) = [start for start in expected if names[parameter].startswith(start)]
        assert scale == expected[start], names[parameter]
    assert optimizer.param_groups[0][LR_SCALE] == 1.0, "the logged learning rate is the whole one"
    norms = {p for m in module.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    assert all((decay == 0) == (parameter in norms) for parameter, (_, decay) in rate_of.items())
    with pytest.raises(KeyError):
        rate_of[nn.Parameter(torch.zeros(1))]


def test_a_step_with_scales_is_that_of_the_scaled_rates():
    weights = [nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))]
    module = nn.ParameterList(weights)
    optimizer = build_optimizer(module, OptimizerOptions(lr=0.1, momentum=0.0, weight_decay=0.0), {weights[0]: 0.25})
    (weights[0] + weights[1]).backward()
    optimizer.step()
    assert [weight.item() for weight in weights] == pytest.approx([2 - 0.025, 2 - 0.1])


def test_without_freezing_the_optimizer_has_its_two_groups():
    groups = FaceRecognitionModule("ir_mini", 3).configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
