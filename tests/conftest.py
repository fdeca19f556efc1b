"""What all tests share: one thread, property tests that try the same examples every time, and GPUs if there are any."""

import os

import pytest
import torch
from hypothesis import settings

# Read when CUDA starts: without it its matrix products may round in another way each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch finds none"))
