"""Tests of the training package: against transformers and PEFT, then algebra, then constants."""
