"""What every test shares: no test reaches the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is first imported; subprocesses inherit it

pytest_plugins = ["tests.fixtures"]
