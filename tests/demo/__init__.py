"""Tests of the demo package; the whole demo runs in tests/serving."""
