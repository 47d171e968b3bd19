"""Tests of `loadtests.readers`: files are read strictly, and tables hold what is in them."""
