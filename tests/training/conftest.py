"""What tests of training share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def job():
    """Of one process, where a norm that several processes share refuses a CPU in train mode as soon as it would look
    for others."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
