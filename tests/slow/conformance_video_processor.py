"""
Runs the common tests of transformers on the video processor and the processor of this package.

These tests come with the source distribution of transformers, not with the installed package. This file is run next to
the `tests` folder of a source distribution, which `tests` then refers to.
"""

import sys
import types
import unittest

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from region_learner import RegionLearnerProcessor, RegionLearnerVideoProcessor

# A helper of transformers' repository that the distribution leaves out; only tests of chat templates use its files.
_fetch = types.ModuleType("fetch_hub_objects_for_ci")
_fetch.url_to_local_path = lambda url, *args, **kwargs: url
sys.modules.setdefault("fetch_hub_objects_for_ci", _fetch)

from tests.test_processing_common import ProcessorTesterMixin  # noqa: E402
from tests.test_video_processing_common import VideoProcessingTestMixin, prepare_video_inputs  # noqa: E402


class RegionLearnerVideoProcessorTester:
    """Provides the inputs of the common tests and the expected shape of the outputs."""

    def __init__(self):
        self.batch_size = 5
        self.num_frames = 8
        self.num_channels = 3
        self.sampled_frames = 4

    @property
    def video_processor_dict(self):
        return {
            "size": {"shortest_edge": 20},
            "crop_size": {"height": 18, "width": 18},
            "output_size": {"height": 16, "width": 16},
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.25, 0.3],
            "num_frames": self.sampled_frames,
            "short_clips": "error",
            "antialias": False,
            "crop_scale": [0.4, 0.9],
            "flip_probability": 0.25,
        }

    def expected_output_video_shape(self, videos):
        return [min(len(videos[0]), self.sampled_frames), self.num_channels, 16, 16]

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=80,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class RegionLearnerVideoProcessingTest(VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = RegionLearnerVideoProcessor
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        self.video_processor_tester = RegionLearnerVideoProcessorTester()

    @property
    def video_processor_dict(self):
        return self.video_processor_tester.video_processor_dict


class RegionLearnerProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = RegionLearnerProcessor

    @classmethod
    def _setup_video_processor(cls):
        return RegionLearnerVideoProcessor.for_image_size(32)

    @classmethod
    def _setup_tokenizer(cls):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "lower", "newer", "upper", "older", "longer", "string"]
        tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_max_length=512,
            model_input_names=["input_ids", "attention_mask"],
        )
