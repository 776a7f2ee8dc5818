"""Steps whose loss or gradient is not finite: they change nothing, and several in sequence end the run."""

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from .checkpoints import described

if TYPE_CHECKING:
    from .trainer import RegionLearnerTrainer

logger = logging.getLogger(__name__)

# So many steps in sequence that had to be left out end a run: one may be due to a bad batch, more are not.
MAX_IN_SEQUENCE = 3


class NonFiniteError(ValueError):
    """A run whose loss, gradients or weights are NaN or infinite, and which cannot go on."""


def contagious(loss: torch.Tensor) -> torch.Tensor:
    """
    `loss`, of which no gradient is finite where it is not finite itself. So the norm of the gradient tells all
    processes of a loss in one of them. Other gradients stay as they are, bit for bit.
    """
    one_or_nan = loss.detach() * 0 + 1
    loss.register_hook(lambda gradient: gradient * one_or_nan)
    return loss


class SkipNonFiniteSteps(TrainerCallback):
    """
    Leaves out each step whose loss or gradient is not finite in any process: weights, optimizer and codebook stay as
    they were; the schedule of the learning rate goes on. In float16, a gradient that overflows in the loss scaler's
    search for a scale is left out by the scaler, and does not count.

    The norm of the gradient is read once in a step, where the Trainer, which looks for a loss that is NaN, has waited
    for the device anyway.

    Raises:
        NonFiniteError: after [`MAX_IN_SEQUENCE`] such steps in sequence, or as soon as a weight is not finite. All
            processes raise it in the same step.
    """

    def __init__(self, trainer: "RegionLearnerTrainer"):
        self.trainer = trainer
        self.skipped = 0
        self._in_sequence = 0
        self._loss: torch.Tensor | None = None  # of the step, added up over its batches
        self._finite_since_log = False

    @property
    def in_trouble(self) -> bool:
        """Whether the last step was left out, so that its weights may be those that no step is finite with."""
        return self._in_sequence > 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.skipped = self._in_sequence = 0
        self._finite_since_log = False

    def on_step_begin(self, args, state, control, **kwargs):
        self._loss = None

    def observe(self, loss: torch.Tensor):
        self._loss = loss if self._loss is None else self._loss + loss

    def check(self, model: torch.nn.Module, grad_norm: Any):
        """Is given the model with all gradients of a step, and their norm, before the optimizer sees them."""
        norm = _number(grad_norm)
        if norm is None or math.isfinite(norm):  # None: known to DeepSpeed alone
            self._in_sequence, self._finite_since_log = 0, True
            return
        if (quantizer := self.trainer.model.quantizer) is not None:
            quantizer.discard_pending()
        assert self._loss is not None  # `training_step` has observed it
        losses = self.trainer.accelerator.gather(self._loss.float().reshape(1)).tolist()
        infinite = [loss for loss in losses if not math.isfinite(loss)]
        scaler = self.trainer.accelerator.scaler
        if scaler is not None and not infinite and scaler.get_scale() >= 1:
            return
        if scaler is None:
            model.zero_grad()  # without gradients the optimizer does nothing; the scaler itself sees to that
        self.skipped += 1
        self._in_sequence += 1
        step = self.trainer.state.global_step + 1
        what = f"the loss is {infinite[0]}" if infinite else f"the norm of the gradient is {norm}"
        if (weight := self.trainer.non_finite_weight()) is not None:
            raise self.error(f"Step {step}: {what}, and the weights are not finite (the first: {weight})")
        if self._in_sequence == MAX_IN_SEQUENCE:
            raise self.error(f"Step {step}: {what}, and it was not finite in the {self._in_sequence - 1} steps before")
        if self.trainer.is_world_process_zero():
            logger.warning("Step %d is left out: %s.", step, what)

    def error(self, problem: str) -> NonFiniteError:
        return NonFiniteError(
            f"{problem}. {described(str(self.trainer.args.output_dir))} Start again, from the beginning or with "
            "--model CHECKPOINT, with a lower --learning-rate, or with --bf16 instead of --fp16: resuming would "
            "repeat the same steps."
        )

    def correct(self, logs: dict[str, float]):
        """Where all steps since the last log were left out, the Trainer, which leaves them out as well, logs 0."""
        if not self._finite_since_log and self._in_sequence:
            logs["loss"] = math.nan
        if self.skipped:
            logs["skipped_steps"] = self.skipped
        self._finite_since_log = False


def _number(norm: Any) -> float | None:
    if hasattr(norm, "full_tensor"):  # of a sharded model
        norm = norm.full_tensor()
    return None if norm is None else float(norm)
