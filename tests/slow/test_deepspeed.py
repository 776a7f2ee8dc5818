"""Tests DeepSpeed's ZeRO on two processes against plain data parallelism, if `deepspeed` is installed."""

import os

import pytest
import torch
from torch import multiprocessing

from region_learner.loss_region_learner import contrastive_loss

from ..conftest import clips, texts, tiny_model
from ..toy_run import free_port

RATE = 0.01


def _train(rank: int, port: int, stage: int, path: str):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    part = slice(2 * rank, 2 * rank + 2)
    inputs = {name: value[part] for name, value in texts(batch=4).items()}
    inputs |= {"pixel_values_videos": clips(batch=4)[part]}

    plain = tiny_model(learn_temperature=True).train()
    loss = contrastive_loss(plain.config, plain(**inputs), gather=True)
    loss.backward()
    plain.update_codebook()
    for parameter in plain.parameters():
        torch.distributed.all_reduce(parameter.grad)
        parameter.data -= RATE * parameter.grad / 2

    model = tiny_model(learn_temperature=True)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "SGD", "params": {"lr": RATE}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    engine.train()
    its_loss = contrastive_loss(model.config, engine(**inputs), gather=True)
    engine.backward(its_loss)
    engine.step()
    model.update_codebook()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if rank == 0:
        result = {
            "losses": (loss.detach(), its_loss.detach()),
            "weights": (dict(plain.state_dict()), weights),
            "buffers": (dict(plain.named_buffers()), dict(model.named_buffers())),
        }
        torch.save(result, path)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_matches_data_parallelism(tmp_path, stage):
    pytest.importorskip("deepspeed")
    multiprocessing.spawn(_train, (free_port(), stage, str(tmp_path / "result")), nprocs=2)
    result = torch.load(tmp_path / "result", weights_only=True)
    expected, got = result["losses"]
    torch.testing.assert_close(got, expected)
    expected, got = result["weights"]
    start = tiny_model(learn_temperature=True).state_dict()
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7, msg=name)
    assert not torch.equal(got["video_projection.weight"], start["video_projection.weight"])
    expected, got = result["buffers"]
    for name, buffer in got.items():
        torch.testing.assert_close(buffer, expected[name], msg=name)
