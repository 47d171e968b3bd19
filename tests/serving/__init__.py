"""Tests of serving, most of them against the real tritonserver."""
