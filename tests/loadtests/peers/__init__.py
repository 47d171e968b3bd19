"""Tests of `loadtests.peers`."""
