"""RegionLearner for Hugging Face: video-text dual encoders that learn regions by themselves."""
