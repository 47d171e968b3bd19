"""Tests of the files that run inside Triton, loaded the way its python stub loads them."""
