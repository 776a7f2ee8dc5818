"""Checks the inferred types of model outputs. `make check` runs mypy on this file; nothing imports it."""

from typing import assert_type

from region_learner import (
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
    RegionLearnerOutput,
    RegionLearnerQuestionAnsweringOutput,
    RegionLearnerVideoClassifierOutput,
    RegionLearnerVideoModel,
    RegionLearnerVideoOutput,
)


def outputs_of_models(
    model: RegionLearnerModel,
    video_model: RegionLearnerVideoModel,
    classifier: RegionLearnerForVideoClassification,
    answers: RegionLearnerForVideoQuestionAnswering,
) -> None:
    assert_type(model(), RegionLearnerOutput)
    assert_type(RegionLearnerModel.from_pretrained("checkpoint").to("cpu").eval()(), RegionLearnerOutput)
    assert_type(model().video_model_output, RegionLearnerVideoOutput | None)
    assert_type(video_model(), RegionLearnerVideoOutput)
    assert_type(classifier(), RegionLearnerVideoClassifierOutput)
    assert_type(answers(), RegionLearnerQuestionAnsweringOutput)
