"""Where torch.compile's default backend can work at all."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

needs_inductor = pytest.mark.skipif(
    " " in torch.__file__ or shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch's inductor needs a C++ compiler, and torch in a folder without spaces",
)
