"""Run by torchrun: the loss and gradients of a model whose weights are in parts, against those of a whole one."""

from __future__ import annotations

import os
import sys

import torch
from conftest import make_pairs
from torch.distributed import destroy_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer


def compare(base: str, folder: str, *, shared_prompt: bool) -> None:
    args = PartialRewardConfig(
        folder, use_cpu=True, report_to="none", gradient_checkpointing=False, shared_prompt=shared_prompt
    )
    trainer = PartialRewardTrainer(base, args, train_dataset=make_pairs(4, seed=0))
    model, batch = trainer.model, trainer.data_collator(list(trainer.train_dataset))
    whole = trainer.compute_loss(model, dict(batch))
    whole.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parts = trainer.compute_loss(model, dict(batch))
    parts.backward()
    torch.testing.assert_close(parts.detach(), whole.detach(), rtol=0, atol=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.to_local().numel() < gradients[name].numel() or parameter.shape[0] == 1
        torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=0, atol=1e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for choice in (False, True):
        compare(*sys.argv[1:], shared_prompt=choice)
    destroy_process_group()
