"""
Runs the common tests of transformers on the models and configurations of this package.

`tests/slow/test_conformance.py` unpacks the tests of a transformers release and runs this file beside them.
"""

import unittest

import torch
from transformers import DistilBertConfig

from region_learner import (
    RegionLearnerConfig,
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
    RegionLearnerVideoConfig,
    RegionLearnerVideoModel,
)
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import (
    ModelTesterMixin,
    floats_tensor,
    ids_tensor,
    random_attention_mask,
    torch_device,
)


class VideoModelTester:
    def __init__(self, parent, batch_size=3, **config):
        self.parent = parent
        self.batch_size = batch_size
        self.num_frames = 2
        self.image_size = 16
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.hidden_size = 32
        self.is_training = False  # the tower has no loss; the dual encoder below is trained
        self.seq_length = 1 + self.num_frames * (self.image_size // 8) ** 2
        self.config = config

    def get_config(self):
        sizes = {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 37,
            "image_size": self.image_size,
            "patch_size": 8,
            "num_frames": self.num_frames,
            "codebook_size": 12,
            "num_regions": 3,
            "interaction_heads": 4,
        }
        return RegionLearnerVideoConfig(**sizes | self.config)

    def pixel_values(self):
        return floats_tensor([self.batch_size, self.num_frames, 3, self.image_size, self.image_size])

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values_videos": self.pixel_values()}


class CommonVideoModelTests(ModelTesterMixin):
    all_model_classes = (RegionLearnerVideoModel,)
    test_resize_embeddings = False
    test_torch_exportable = False
    model_split_percents = [0.5, 0.8, 0.9]
    config = {}

    def setUp(self):
        self.model_tester = VideoModelTester(self, **self.config)
        self.config_tester = ConfigTester(
            self, config_class=RegionLearnerVideoConfig, has_text_modality=False, hidden_size=48
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("A video has no input embeddings")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        model = RegionLearnerVideoModel(self.model_tester.get_config())
        new = torch.nn.Conv2d(3, 32, 8, 8)
        model.set_input_embeddings(new)
        assert model.get_input_embeddings() is new


class VideoModelTest(CommonVideoModelTests, unittest.TestCase):
    pass


class VideoModelWithEverythingTest(CommonVideoModelTests, unittest.TestCase):
    config = {
        "motion_excitation": True,
        "interaction_layers": 2,
        "region_options": {"mask_loss_weight": 0.5},
        "pre_layernorm": True,
    }


class VideoModelWithoutRegionsTest(CommonVideoModelTests, unittest.TestCase):
    config = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}


class VideoModelWithLateFusionTest(CommonVideoModelTests, unittest.TestCase):
    config = {"temporal_fusion": "linear"}

    def setUp(self):
        super().setUp()
        self.model_tester.seq_length = 1 + (self.model_tester.image_size // 8) ** 2  # of one frame


class VideoModelWithBackboneTest(CommonVideoModelTests, unittest.TestCase):
    config = {
        "backbone_config": {
            "model_type": "dinov3_vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 37,
            "image_size": 16,
            "patch_size": 8,
        },
    }

    def setUp(self):
        super().setUp()
        self.model_tester.seq_length = 1 + (self.model_tester.image_size // 8) ** 2  # of one frame


class TextModelTester:
    num_hidden_layers = 2
    shape = (3, 7)

    def get_config(self):
        return DistilBertConfig(
            vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=37, max_position_embeddings=40
        )

    def prepare_config_and_inputs_for_common(self):
        inputs = {"input_ids": ids_tensor(self.shape, 99), "attention_mask": random_attention_mask(self.shape)}
        return self.get_config(), inputs


class DualEncoderTester:
    def __init__(self, parent, **config):
        self.parent = parent
        self.config = config
        self.video = self.video_model_tester = VideoModelTester(parent)
        self.text_model_tester = TextModelTester()
        self.batch_size, self.seq_length = self.text_model_tester.shape
        self.is_training = True

    def get_config(self):
        towers = {"video_config": self.video.get_config(), "text_config": self.text_model_tester.get_config()}
        return RegionLearnerConfig(**towers, projection_dim=16, **self.config)

    def prepare_config_and_inputs_for_common(self):
        _, text_inputs = self.text_model_tester.prepare_config_and_inputs_for_common()
        videos = {"pixel_values_videos": self.video.pixel_values()}
        return self.get_config(), text_inputs | videos | {"return_loss": True}


class CommonDualEncoderTests(ModelTesterMixin):
    test_resize_embeddings = False
    test_torch_exportable = False
    has_attentions = False  # the attentions of its towers are in the outputs of the towers
    _is_composite = True
    model_tester_class, config = DualEncoderTester, {}

    def setUp(self):
        self.model_tester = self.model_tester_class(self, **self.config)
        self.config_tester = ConfigTester(
            self, config_class=RegionLearnerConfig, has_text_modality=False, common_properties=["projection_dim"]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("Hidden states are in the outputs of the towers, which are tested on their own")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("Hidden states are in the outputs of the towers, which are tested on their own")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("Two inputs: there is no single sequence of embeddings")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("Two inputs: there is no single sequence of embeddings")
    def test_inputs_embeds_matches_input_ids(self):
        pass


class DualEncoderTest(CommonDualEncoderTests, unittest.TestCase):
    all_model_classes = (RegionLearnerModel,)


class LearnedTemperatureAndBiasTest(CommonDualEncoderTests, unittest.TestCase):
    all_model_classes = (RegionLearnerModel,)
    config = {"loss": "sigmoid", "learn_temperature": True}


class QuestionAnsweringTester(DualEncoderTester):
    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        del inputs["return_loss"]
        return config, inputs


class WithLabels:
    """Adds labels to the inputs, because the common tests only know those of the heads of transformers."""

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            batch_size = len(inputs_dict["pixel_values_videos"])
            inputs_dict["labels"] = torch.zeros(batch_size, dtype=torch.long, device=torch_device)
        return inputs_dict


class QuestionAnsweringTest(WithLabels, CommonDualEncoderTests, unittest.TestCase):
    all_model_classes = (RegionLearnerForVideoQuestionAnswering,)
    model_tester_class = QuestionAnsweringTester


class VideoClassificationTester(VideoModelTester):
    def __init__(self, parent, batch_size=3, **config):
        super().__init__(parent, batch_size, **config)
        self.is_training = True

    def prepare_config_and_inputs_for_common(self):
        towers = {"video_config": self.get_config(), "text_config": TextModelTester().get_config()}
        return RegionLearnerConfig(**towers, projection_dim=16), {"pixel_values_videos": self.pixel_values()}


class VideoClassificationTest(WithLabels, CommonVideoModelTests, unittest.TestCase):
    all_model_classes = (RegionLearnerForVideoClassification,)
    _is_composite = True

    def setUp(self):
        super().setUp()
        self.model_tester = VideoClassificationTester(self)

    def test_model_get_set_embeddings(self):
        model = RegionLearnerForVideoClassification(self.model_tester.prepare_config_and_inputs_for_common()[0])
        assert isinstance(model.get_input_embeddings(), torch.nn.Conv2d)
