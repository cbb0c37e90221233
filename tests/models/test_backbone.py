"""What holds for every backbone: its stages, gradient checkpointing, memory layouts, kinds of arithmetic."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from adaface.models.backbone import Backbone
from adaface.models.registry import ARCHITECTURES, build_model
from adaface.training.memory_plan import count_activations

SMALL = ("ir_mini", "mobilefacenet", "timm:test_resnet@64", "timm:test_vit@64")


def faces(size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, 3, 112, 112, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@functools.cache
def built(name: str) -> Backbone:
    torch.manual_seed(0)
    return build_model(name).eval()


def fresh(name: str) -> Backbone:
    return copy.deepcopy(built(name))


# stages


@pytest.mark.parametrize("name", [*ARCHITECTURES, *SMALL[2:], "timm:test_efficientnet@64", "timm:test_convnext@64"])
def test_every_parameter_is_in_one_stage(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name)
    parameters = [parameter for stage in model.stage_parameters() for parameter in stage]
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == set(model.parameters())
    modules = [module for stage in model.stages for module in stage]
    inside = [part for module in modules for part in module.modules()]
    assert len(inside) == len(set(inside)), "no module inside of another"
    assert model.stages[-1] == (model.output_layer,)
    assert set(model.blocks) <= set(modules)
    assert len(model.blocks) >= 3


@pytest.mark.parametrize("name", SMALL)
def test_stages_go_from_input_to_output(name: str) -> None:
    model = fresh(name)
    modules = [module for stage in model.stages for module in stage]
    seen = []
    for module in modules:
        module.register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad():
        model(faces(1))
    assert seen == modules


def test_stages_of_the_official_networks() -> None:
    with torch.device("meta"):
        assert [len(stage) for stage in build_model("ir_50").stages] == [1, 3, 4, 14, 3, 1]
        assert [len(stage) for stage in build_model("mobilefacenet").stages] == [1, 5, 7, 3, 1]


def test_what_the_network_itself_holds_belongs_to_the_first_stage() -> None:
    model = fresh("timm:test_vit@64")
    first = set(model.stage_parameters()[0])
    assert {model.net.pos_embed, model.net.cls_token, *model.net.patch_embed.parameters()} <= first


def test_a_network_without_what_a_backbone_needs_says_what_is_missing() -> None:
    class Nothing(Backbone):
        pass

    for ask in (lambda: Nothing()(faces(1)), lambda: Nothing().stages):
        with pytest.raises(NotImplementedError, match=r"Nothing must define (features|stages)"):
            ask()


# gradient checkpointing


def training_step(model: Backbone) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after a forward and backward pass, and the bytes that were kept in between."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings, norms = model(faces(4))
    (embeddings.sum() + norms.sum()).backward()
    numbers = {name: parameter.grad for name, parameter in model.named_parameters()}
    return numbers | {name: buffer.clone() for name, buffer in model.named_buffers()}, sum(kept.values())


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_gives_the_same_bits_from_less_memory(name: str) -> None:
    plain, checkpointed = fresh(name).train(), fresh(name).train()
    checkpointed.gradient_checkpointing = True
    expected, memory = training_step(plain)
    got, less_memory = training_step(checkpointed)
    assert expected.keys() == got.keys()
    different = [key for key, value in expected.items() if not torch.equal(value, got[key])]
    assert not different
    assert less_memory < 0.8 * memory
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    norms = [module for module in checkpointed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.1}


def test_gradient_checkpointing_works_with_synchronized_batch_norm() -> None:
    plain, checkpointed = (nn.SyncBatchNorm.convert_sync_batchnorm(fresh("ir_mini")).train() for _ in range(2))
    checkpointed.gradient_checkpointing = True
    expected, got = training_step(plain)[0], training_step(checkpointed)[0]
    assert all(torch.equal(value, got[key]) for key, value in expected.items())


def test_random_numbers_inside_of_a_block_are_drawn_once() -> None:
    plain, checkpointed = (fresh("timm:test_vit@64").train() for _ in range(2))
    for model in (plain, checkpointed):
        for block in model.blocks:
            block.mlp.drop1.p = 0.5
    checkpointed.gradient_checkpointing = True
    expected, got = training_step(plain)[0], training_step(checkpointed)[0]
    assert all(torch.equal(value, got[key]) for key, value in expected.items())


def test_gradient_checkpointing_does_nothing_in_evaluation() -> None:
    model = fresh("ir_mini")
    with torch.no_grad():
        expected = model(faces(2))[0]
        model.gradient_checkpointing = True
        assert torch.equal(model(faces(2))[0], expected)


def test_gradient_checkpointing_allows_a_second_backward() -> None:
    model = fresh("ir_mini").train()
    model.gradient_checkpointing = True
    embeddings, _ = model(faces(2))
    loss = embeddings.square().sum()
    loss.backward(retain_graph=True)
    first = model.body[0].res_layer[1].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model.body[0].res_layer[1].weight.grad, 2 * first)


def test_gradient_checkpointing_leaves_nothing_behind() -> None:
    """A copy of a network whose blocks still had another's forward pass would embed with the other's weights."""
    model = fresh("mobilefacenet").train()
    model.gradient_checkpointing = True
    model(faces(2))
    assert not any("forward" in vars(block) for block in model.blocks)
    model.blocks[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(faces(2))
    assert not any("forward" in vars(block) for block in model.blocks)


@pytest.mark.parametrize("name", SMALL)
def test_the_memory_of_checkpointed_steps_is_foreseen(name: str) -> None:
    """Outside of blocks and their inputs; what a plan adds is the inside of one block, the largest."""
    model = fresh(name)
    counted = count_activations(model, "32-true")
    model.train().gradient_checkpointing = True
    kept = {}
    stay = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in stay:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    hooks = [block.register_forward_pre_hook(keep_input) for block in model.blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = model(faces(4))
    assert sum(kept.values()) / 4 < counted.kept_checkpointing < counted.kept
    del alive, hooks


# what changes the speed and not the numbers, and 16 bits


@pytest.mark.parametrize("name", SMALL)
def test_layout_and_arithmetic_do_not_change_the_embedding(name: str) -> None:
    model, images = fresh(name), faces(3)
    with torch.inference_mode():
        expected, norms = model(images)
        double, double_norms = copy.deepcopy(model).double()(images.double())
        last, _ = copy.deepcopy(model).to(memory_format=torch.channels_last)(
            images.to(memory_format=torch.channels_last)
        )
        with torch.autocast("cpu", torch.bfloat16):
            halves, half_norms = model(images)
    assert double.dtype == torch.float64
    torch.testing.assert_close(expected.double(), double, rtol=0, atol=1e-5)
    torch.testing.assert_close(norms.double(), double_norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)
    assert halves.dtype == half_norms.dtype == torch.float32
    assert (halves * expected).sum(dim=1).min() > 0.99
    torch.testing.assert_close(torch.linalg.vector_norm(halves, dim=1), torch.ones(3))


@pytest.mark.parametrize("name", SMALL[1:])  # ir_mini: test_iresnet.py
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = fresh(name).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # timm begins with zeros at the end of residual branches
    embeddings, norms = model(faces(4))
    target = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    ((embeddings * target).sum() + norms.sum()).backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not silent
