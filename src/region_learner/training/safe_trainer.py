"""A Trainer whose checkpoints are always complete and finite. It does not depend on videos."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy, SaveStrategy, rotate_checkpoints
from transformers.utils import PushInProgress
from transformers.utils import logging as transformers_logging

from ..hub import in_words
from ..loading import first_non_finite, refuse_non_finite
from . import checkpoints
from .adapters import ADAPTER, has_adapters, load_adapters, load_beside_adapters, merged, save_adapters
from .finite import SkipNonFiniteSteps
from .pushing import HubPushes, remove_snapshots
from .training_arguments import RegionLearnerTrainingArguments

logger = logging.getLogger(__name__)


class _SaveAfterEvaluation(TrainerCallback):
    """
    Postpones the checkpoint of the last step of an epoch, or of the run, until the epoch is evaluated. A run that is
    resumed from it begins with the next epoch, so this evaluation would be left out.
    """

    def __init__(self):
        self.postponed = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.postponed = False  # left over from an interrupted run

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        if control.should_save and ends_epoch and args.eval_strategy == "epoch":
            control.should_save, self.postponed = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.postponed:
            control.should_save, self.postponed = True, False


class SafeTrainer(Trainer):
    """
    A [`~transformers.Trainer`] whose checkpoints are always complete and finite.

    A checkpoint is marked as complete once all of its files are on disk, and only then are older ones removed.
    Steps that are not finite are skipped, and weights that are not finite are never saved. Models with adapters are
    saved as plain models, with the adapters in a subdirectory.
    """

    args: RegionLearnerTrainingArguments
    push_in_progress: Any  # of transformers, whose types say None

    def __init__(self, *args, callbacks: list | None = None, **kwargs):
        self.finite_steps = SkipNonFiniteSteps(self)  # type: ignore[arg-type]
        self._is_saving_checkpoint = False
        self._pushes: HubPushes | None = None
        super().__init__(*args, callbacks=[self.finite_steps, _SaveAfterEvaluation(), *(callbacks or [])], **kwargs)

    def write_to_checkpoint(self, folder: Path) -> None:
        """Writes additional files into a checkpoint, in every process. Subclasses override this."""

    # Steps

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Computes the gradients of a batch, and returns its loss, which `finite_steps` observes."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite_steps.observe(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Returns the gradient norm. Called once all gradients of a step are known, before the optimizer's step."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.finite_steps.check(model, grad_norm)
        return grad_norm

    def _run_epoch(self, **kwargs):
        """Trains one epoch, but never past the last step, unlike the Trainer when it is resumed."""
        if self.state.global_step >= self.state.max_steps:
            if self.is_world_process_zero():
                logger.info(
                    "Training has already finished (step %d of %d): there is nothing left to train.",
                    self.state.global_step,
                    self.state.max_steps,
                )
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    # Checkpoints

    def _save_checkpoint(self, model, trial):
        """
        Saves a checkpoint, and marks it as complete when all of its files are written.

        Raises:
            NonFiniteError: a weight is not finite.
        """
        if (weight := self.non_finite_weight()) is not None:
            raise self.finite_steps.error(
                f"Step {self.state.global_step}: the weights are not finite (the first: {weight}) and are not saved"
            )
        run_dir, should_save = self._get_output_dir(trial=trial), self.args.should_save
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if should_save:  # a checkpoint of an earlier run is not complete while it is overwritten
            (folder / checkpoints.COMPLETE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        with checkpoints.naming_write_failures(folder, Path(run_dir), remove=should_save):
            # Older checkpoints are removed, and this one is pushed, only once it is known to be complete.
            with temporarily(self.args, save_total_limit=None), temporarily(self, _is_saving_checkpoint=True):
                super()._save_checkpoint(model, trial)
                folder.mkdir(parents=True, exist_ok=True)
                self.write_to_checkpoint(folder)
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if should_save:
                checkpoints.mark_complete(folder, self.state.global_step)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if should_save and not self.finite_steps.skipped_last_step:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    # The Hub

    @property
    def _hub_pushes(self) -> HubPushes:
        if self._pushes is None:
            output_dir = Path(str(self.args.output_dir))
            remove_snapshots(output_dir)
            self._pushes = HubPushes(str(self.hub_model_id), output_dir, self.args.hub_token, self.args.hub_revision)
        return self._pushes

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Pushes a complete checkpoint. The Trainer would push `output_dir` as it is at that time."""
        strategy = self.args.hub_strategy
        if self._is_saving_checkpoint or strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            logger.info("Step %d is not pushed because an earlier push is still running.", self.state.global_step)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        folders = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }
        folder = folders.get(HubStrategy(strategy))
        job = self._hub_pushes.push_checkpoint(Path(checkpoint_folder), f"Training in progress, {when}", folder)
        if job is not None:
            under_way = self.push_in_progress.jobs if is_busy else []
            jobs: Any = [*under_way, job]
            self.push_in_progress = PushInProgress(jobs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Creates the repository if it does not exist.

        Args:
            token, private: as in [`~transformers.Trainer.init_hf_repo`].

        Raises:
            OSError: the Hub refused this, or could not be reached.
        """
        with in_words(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name):
            super().init_hf_repo(token=token, private=private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card_options: Any,
    ):
        """
        Pushes the model, its processor and the results of the run in one commit. An existing card on the Hub is not
        changed; if there is none, the README.md of `output_dir` is pushed, or a card that says how the model was
        trained.

        Args:
            commit_message, blocking, token, revision, private: as in [`~transformers.Trainer.push_to_hub`].
            card_options: `license`, `language` (codes such as "en") and `title` of a card that is created here.

        Raises:
            OSError: the Hub refused the push, or could not be reached.
        """
        if unknown := card_options.keys() - {"license", "language", "title", "model_name"}:
            raise ValueError(
                f"push_to_hub does not take {min(unknown)!r}: leave it out, or write your own card to "
                f"{self.args.output_dir}/README.md."
            )
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        pushes = self._hub_pushes
        if token is not None or revision is not None:
            pushes = HubPushes(
                pushes.repo, pushes.output_dir, token or self.args.hub_token, revision or pushes.revision
            )
        return pushes.push_model(str(commit_message), self._draft_card(pushes.repo, **card_options), blocking)

    def _draft_card(self, repo: str, language: Any = (), model_name: str | None = None, **options: Any) -> str:
        """Returns the card of a model that has not been evaluated yet."""
        from ..evaluation.provenance import describe_model
        from ..model_card import draft_card

        language = [language] if isinstance(language, str) else language or ()
        options = {"title": model_name} | options
        output_dir = str(self.args.output_dir)
        model = describe_model(self.accelerator.unwrap_model(self.model), output_dir)
        return draft_card(model, output_dir, repo, language=language, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """
        Saves the model. The files of an earlier model are kept until all new files are written.

        Args:
            output_dir: the directory. The default is that of the arguments.

        Raises:
            NonFiniteError: a weight is not finite.
        """
        if self._is_saving_checkpoint or self.is_deepspeed_enabled:  # a checkpoint has its own mark
            super().save_model(output_dir, _internal_call)
            return
        target = Path(output_dir or str(self.args.output_dir))
        if (weight := self.non_finite_weight(agreed=self.is_fsdp_enabled)) is not None:
            raise self.finite_steps.error(f"The weights are not finite (the first: {weight}) and are not saved")
        moved = checkpoints.moved_when_complete(target) if self.args.should_save else nullcontext(target)
        with moved as folder:
            super().save_model(str(folder), _internal_call=True)
        if self.args.push_to_hub and not _internal_call and self.is_world_process_zero():
            self._finish_current_push()
            self._hub_pushes.push_model("Model save")

    def non_finite_weight(self, agreed: bool = True) -> str | None:
        """
        Returns the name of a weight that is NaN or infinite; None if all are finite.

        Args:
            agreed: whether to check the weights of all processes, each of which must call this, or only those of this
                process.
        """
        weights = dict(self.model.named_parameters()) if self.is_fsdp_enabled else self.model.state_dict()
        names = [first_non_finite(weights)]
        return next((name for name in (gather_object(names) if agreed else names) if name is not None), None)

    # Adapters

    def _save(self, output_dir: str | None = None, state_dict=None):
        """Writes the model. A model with adapters is written as a plain model with the adapters in a subdirectory."""
        model = self.model
        # `training_args.bin`, which may be pushed, must not contain the token.
        with without_progress_bars(), temporarily(self.args, hub_token=None):
            if not has_adapters(model):
                super()._save(output_dir, state_dict)
                return
            folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
            with temporarily(self, model=merged(model)):
                super()._save(str(folder))
            save_adapters(model, folder / ADAPTER)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """
        Loads the weights of a checkpoint, and its adapters from their own directory.

        Raises:
            ValueError: a weight is not finite, or the adapters are of another model.
        """
        if not self._load_adapters(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_beside_adapters(self.model, Path(resume_from_checkpoint))
        if not self.is_fsdp_enabled:
            refuse_non_finite(model or self.model, resume_from_checkpoint)  # type: ignore[arg-type]

    def _load_best_model(self):
        """Loads the best checkpoint of the run, including its adapters if it has any."""
        best = Path(str(self.state.best_model_checkpoint))
        if not self._load_adapters(best):
            super()._load_best_model()
            load_beside_adapters(self.model, best)

    def _load_adapters(self, checkpoint: Path) -> bool:
        """Loads the adapters of a checkpoint. Returns whether it has any."""
        if not has_adapters(self.model) or not (checkpoint / ADAPTER).is_dir():
            return False
        load_adapters(self.model, checkpoint / ADAPTER)
        return True


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Turns off transformers' progress bars within a block, because those of saving would interrupt log lines."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


@contextmanager
def temporarily(owner: Any, **values: Any) -> Iterator[None]:
    """Sets attributes within a block, for methods of the Trainer that read them."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
