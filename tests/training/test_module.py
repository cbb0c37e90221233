from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from adaface.config.options import HeadOptions, OptimizerOptions
from adaface.training.module import FaceRecognitionModule, _in_double, _pairs_in_order
from adaface.training.optimization import split_for_weight_decay
from tests.support.golden_fill import fill_state_dict


def test_six_sgd_steps_follow_the_official_trajectory(golden):
    reference = np.load(golden / "trajectory.npz")
    classes, _, steps, steps_before_drop = reference["meta"]
    optimizer_options = OptimizerOptions(
        lr=float(reference["lr"]), momentum=0.9, weight_decay=5e-4, lr_milestones=(int(steps_before_drop),)
    )
    head_options = HeadOptions(head="adaface", m=0.4, h=0.333, s=64.0, t_alpha=0.01)
    module = FaceRecognitionModule("ir_18", int(classes), head_options, optimizer_options)
    state = module.state_dict()
    state |= fill_state_dict({key: value for key, value in state.items() if key.startswith("model.")})
    kernel = np.random.default_rng(99).standard_normal((512, classes)).astype(np.float32)
    state["head.kernel"] = torch.from_numpy(kernel / np.linalg.norm(kernel, axis=0))
    module.load_state_dict(state)
    module.double().train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    optimizer = module.configure_optimizers()["optimizer"]

    losses, norm_means = [], []
    for step in range(steps):
        images = torch.from_numpy(reference["images_u8"][step]).permute(0, 2, 3, 1)  # (B, 112, 112, 3)
        embeddings, norms = module(images)
        loss = module.head.loss(embeddings, norms, torch.from_numpy(reference["labels"][step]))
        for group in optimizer.param_groups:
            group["lr"] = module.schedule.learning_rate(step, 1, steps)  # the reference's epochs are its steps
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        norm_means.append(norms.mean().item())

    np.testing.assert_allclose(losses, reference["losses"], rtol=1e-8)
    np.testing.assert_allclose(norm_means, reference["norm_means"], rtol=1e-8)
    final = {key: value.numpy() for key, value in module.state_dict().items()}
    for name, key in {
        "final_kernel": "head.kernel",
        "final_first_conv": "model.input_layer.0.weight",
        "final_first_bn_mean": "model.input_layer.1.running_mean",
        "final_prelu": "model.input_layer.2.weight",
        "final_linear_bias": "model.output_layer.3.bias",
        "batch_mean": "head.batch_mean",
        "batch_std": "head.batch_std",
    }.items():
        np.testing.assert_allclose(final[key], reference[name], rtol=1e-6, err_msg=key)


def test_weight_decay_spares_batch_norm_alone():
    module = FaceRecognitionModule("ir_18", 3)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group} for group in split_for_weight_decay(module))
    assert decayed | spared == set(names.values())
    assert not decayed & spared
    assert {"head.kernel", "model.output_layer.3.bias", "model.input_layer.2.weight"} <= decayed
    assert {"model.input_layer.1.weight", "model.input_layer.1.bias", "model.output_layer.0.bias"} <= spared
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]


def test_state_dict_has_exactly_the_official_keys():
    state = FaceRecognitionModule("ir_18", 3).state_dict()
    others = [key for key in state if not key.startswith("model.")]
    assert others == ["head.kernel", "head.t", "head.batch_mean", "head.batch_std"]


def test_gathered_rows_come_back_in_file_order_each_once():
    issame = np.array([True, False, True])
    places = np.array([4, 0, 2, 5, 3, 1, 0])  # strided over ranks, image 0 repeated by padding
    embeddings = places[:, None] * np.ones((1, 2))
    ordered, same = _pairs_in_order(embeddings, places, issame)
    assert ordered[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert same.tolist() == issame.tolist()


def test_pairs_that_were_seen_in_part_are_left_out():
    issame = np.array([True, False, True])
    places = np.array([0, 1, 2, 4, 5])
    ordered, same = _pairs_in_order(places[:, None] * 1.0, places, issame)
    assert ordered[:, 0].tolist() == [0, 1, 4, 5]
    assert same.tolist() == [True, True]


def test_embeddings_are_fused_in_double_precision_where_the_device_has_it():
    of_apple = SimpleNamespace(device=torch.device("mps"))  # and no `double`, which raises there
    assert _in_double(of_apple) is of_apple
    assert _in_double(torch.ones(2)).dtype == torch.float64
