"""Tests of the builders package: the engine against the checkpoint, and what a release holds."""
