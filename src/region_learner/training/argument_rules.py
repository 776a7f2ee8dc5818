"""
Which arguments of `transformers.TrainingArguments` are refused.

All others work: most by code of transformers that the Trainer here leaves as it is, some by its own.
`tests/test_argument_rules.py` has the list, and fails for an argument of a new version that is not in it.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from importlib.util import find_spec
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import integration_utils
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import OptimizerNames

# Arguments that would do nothing, or something wrong, at any value but the default: why, or what to do instead.
REFUSED = {
    "train_sampling_strategy": "rows are shuffled by the seed, so that a run can be resumed",
    "length_column_name": "rows are shuffled by the seed, not grouped by length",
    "dataloader_in_order": "batches come in the order of the seed, so that a run can be resumed",
    "remove_unused_columns": "the collator reads columns that the model does not know",
    "label_names": "the task decides what evaluation keeps of a batch",
    "label_smoothing_factor": "the Trainer would compute a loss of its own",
    "average_tokens_across_devices": "no loss here is a mean over tokens",
    "include_num_input_tokens_seen": "pixels would count as tokens; samples_per_second is logged",
    "eval_do_concat_batches": "the metrics need all rows at once",
    "batch_eval_metrics": "the metrics need all rows at once",
    "eval_use_gather_object": "embeddings of several processes would be mixed up",
    "bf16_full_eval": "evaluation during training does not know it; --bf16 is for both",
    "fp16_full_eval": "evaluation during training does not know it; --fp16 is for both",
    "use_cache": "there is no text generation",
    "use_liger_kernel": "it has no kernels for this model",
    "liger_kernel_config": "it has no kernels for this model",
    "optim_target_modules": "optimisers that choose parameters themselves do not know learning rates by tower",
    "debug": "transformers' search for overflows fails on boolean masks",
    "parallelism_config": "each process reads batches of its own: use DDP, FSDP or DeepSpeed",
}

# The same of `accelerator_config`. Each process makes its own batches, which accelerate does not touch.
_REFUSED_OF_ACCELERATOR = {
    "split_batches": False,
    "dispatch_batches": False,
    "even_batches": True,
    "use_seedable_sampler": True,
    "non_blocking": False,
}

_CHOOSE_PARAMETERS = ("galore", "apollo", "lomo", "adalomo")


# The least value of numbers that neither transformers nor torch check before a run has begun.
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "video_learning_rate": 0,
    "text_learning_rate": 0,
    "weight_decay": 0,
    "lr_gamma": 0,
    "samples_per_epoch": 1,
    "seed": 0,
    "data_seed": 0,
}


def check_ranges(args: Any) -> None:
    """
    Raises:
        ValueError: for a number that is too small, or not finite.
    """
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise ValueError(f"{name}={value} must be at least {least}{', and finite' * isinstance(value, float)}.")
    if args.max_steps == 0:
        raise ValueError("max_steps=0 must be at least 1, or -1 for as many steps as num_train_epochs has.")


def refuse_arguments(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: for an argument that would not do what it says.
    """
    for item in fields(args):
        value = getattr(args, item.name)
        if item.name in REFUSED and value is not None and (value or None) != (_default(item) or None):
            raise ValueError(f"{item.name}={value!r} is not supported: {REFUSED[item.name]}. Leave it out.")
    optim = OptimizerNames(args.optim).value
    if optim.startswith(_CHOOSE_PARAMETERS):
        raise ValueError(
            f"optim={optim} is not supported: it chooses parameters itself, and would ignore learning "
            "rates by tower and layer. Take another, such as adamw_torch."
        )
    modes = _compile_modes() if args.torch_compile_mode is not None else ()
    if modes and args.torch_compile_backend == "inductor" and args.torch_compile_mode not in modes:
        raise ValueError(f"torch_compile_mode={args.torch_compile_mode!r} is not known (modes: {', '.join(modes)})")
    given: Any = args.accelerator_config
    for name, only in _REFUSED_OF_ACCELERATOR.items():
        # None leaves the choice to accelerate, which for rows with a length makes the same one.
        if getattr(given, name) not in (only, None):
            raise ValueError(
                f"accelerator_config: {name}={getattr(given, name)} is not supported: each process makes batches of "
                "its own. Leave it out."
            )
    if args.auto_find_batch_size and args.world_size > 1:
        raise ValueError(
            "auto_find_batch_size is not supported in several processes, which would find different sizes: set "
            "per_device_train_batch_size."
        )


def _compile_modes() -> list[str]:
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def check_accelerator_config(given: Any) -> None:
    """
    Raises:
        ValueError: for a mapping with a key that accelerate does not know.
    """
    known = [item.name for item in fields(AcceleratorConfig)]
    for key in given if isinstance(given, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"accelerator_config: unknown key {key!r}{hint} (keys: {', '.join(known)})")


def _default(item: Field) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


# Trackers that transformers does not list as available although they may be.
_MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}


def check_trackers(names: Sequence[str]) -> None:
    """
    Whether what `report_to` names is there: found out here, not when everything is loaded.

    Raises:
        ValueError: a tracker is not known, or not installed.
    """
    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    missing = [name for name in names if name not in integration_utils.get_available_reporting_integrations()]
    for name in missing:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"report_to={name!r} is not known{hint} (known: none, all, {', '.join(known)})")
        if name not in _MODULES or find_spec(_MODULES[name]) is None:
            package = {"comet_ml": "comet-ml", "azure_ml": "azureml-mlflow", "flyte": "flytekit"}.get(name, name)
            raise ValueError(
                f"report_to={name!r}: it is not installed. Install it (pip install {package}), or give --report_to "
                "none."
            )
