"""Skips training steps whose loss or gradient is not finite, and ends the run after several in a row."""

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from .checkpoints import described

if TYPE_CHECKING:
    from .trainer import RegionLearnerTrainer

logger = logging.getLogger(__name__)

# This many skipped steps in a row end a run: a bad batch explains one of them, but not several.
MAX_IN_SEQUENCE = 3


class NonFiniteError(ValueError):
    """Raised if a run cannot continue, because its loss, gradients or weights are NaN or infinite."""


def contagious(loss: torch.Tensor) -> torch.Tensor:
    """
    Returns `loss`. If it is not finite, all of its gradients become NaN, so that the gradient norm tells all processes
    that the loss of one of them is not finite. The gradients of a finite loss are unchanged, bit-for-bit.
    """
    one_or_nan = loss.detach() * 0 + 1
    loss.register_hook(lambda gradient: gradient * one_or_nan)
    return loss


class SkipNonFiniteSteps(TrainerCallback):
    """
    Skips each step whose loss or gradient is not finite in any process: weights, optimizer and codebook do not change,
    and the learning rate schedule continues. In float16, the loss scaler itself skips gradients that overflow while it
    searches for a scale; these are not counted.

    The gradient norm is read once per step, after the Trainer has synchronized with the device anyway to check whether
    the loss is NaN.

    Raises:
        NonFiniteError: [`MAX_IN_SEQUENCE`] such steps occur in a row, or a weight is not finite. All processes raise
            it in the same step.
    """

    def __init__(self, trainer: "RegionLearnerTrainer"):
        self.trainer = trainer
        self.skipped = 0
        self._in_sequence = 0
        self._loss: torch.Tensor | None = None  # the loss of the step, summed over its batches
        self._finite_since_log = False

    @property
    def skipped_last_step(self) -> bool:
        """Whether the last step was skipped, in which case the current weights may be the cause."""
        return self._in_sequence > 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.skipped = self._in_sequence = 0
        self._finite_since_log = False

    def on_step_begin(self, args, state, control, **kwargs):
        self._loss = None

    def observe(self, loss: torch.Tensor):
        self._loss = loss if self._loss is None else self._loss + loss

    def check(self, model: torch.nn.Module, grad_norm: Any):
        """Skips the step if `grad_norm` is not finite. Called before the optimizer's step."""
        norm = _number(grad_norm)
        if norm is None or math.isfinite(norm):  # None: with DeepSpeed, which does not return the norm
            self._in_sequence, self._finite_since_log = 0, True
            return
        region_learner: Any = self.trainer.model
        if region_learner.quantizer is not None:
            region_learner.quantizer.discard_pending()
        assert self._loss is not None  # `training_step` has set it
        losses = self.trainer.accelerator.gather(self._loss.float().reshape(1)).tolist()
        infinite = [loss for loss in losses if not math.isfinite(loss)]
        scaler = self.trainer.accelerator.scaler
        if scaler is not None and not infinite and scaler.get_scale() >= 1:
            return
        if scaler is None:
            model.zero_grad()  # without gradients the optimizer does nothing; in float16, the scaler skips the step
        self.skipped += 1
        self._in_sequence += 1
        step = self.trainer.state.global_step + 1
        what = f"the loss is {infinite[0]}" if infinite else f"the norm of the gradient is {norm}"
        if (weight := self.trainer.non_finite_weight()) is not None:
            raise self.error(f"Step {step}: {what}, and the weights are not finite (the first: {weight})")
        if self._in_sequence == MAX_IN_SEQUENCE:
            raise self.error(f"Step {step}: {what}, and it was not finite in the {self._in_sequence - 1} steps before")
        if self.trainer.is_world_process_zero():
            logger.warning("Step %d is skipped: %s.", step, what)

    def error(self, problem: str) -> NonFiniteError:
        return NonFiniteError(
            f"{problem}. {described(str(self.trainer.args.output_dir))} Start again, from scratch or with "
            "--model CHECKPOINT, with a lower --learning-rate, or with --bf16 instead of --fp16: resuming would "
            "repeat the same steps."
        )

    def correct(self, logs: dict[str, float]):
        """Logs NaN as the mean loss, instead of the Trainer's 0, if all steps since the last log were skipped."""
        if not self._finite_since_log and self._in_sequence:
            logs["loss"] = math.nan
        if self.skipped:
            logs["skipped_steps"] = self.skipped
        self._finite_since_log = False


def _number(norm: Any) -> float | None:
    if hasattr(norm, "full_tensor"):  # the model is sharded with FSDP
        norm = norm.full_tensor()
    return None if norm is None else float(norm)
