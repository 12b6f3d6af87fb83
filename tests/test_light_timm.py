"""torch's compiler stays out of a process that compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

import hemafast

TRAINS = """
import sys
import torch
from hemafast.engine import trainer
from hemafast.engine.optimizer import build_optimizer, load_optimizer, set_rate
from hemafast.model import build_model
model = build_model("test_efficientnet", classes=3, image_size=32)
optimizer = build_optimizer(model, weight_decay=0.1)
set_rate(optimizer, 0.1)
model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
optimizer.step()
optimizer.zero_grad()
load_optimizer(optimizer, optimizer.state_dict())
print(sorted({"torch._dynamo", "sympy", "triton", "scipy.ndimage"} & sys.modules.keys()))
from timm.models.naflexvit import NaFlexRopeIterator
import torch._dynamo
assert torch._dynamo.disable is not None
assert torch._dynamo.config.recompile_limit > 0
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
"""


def test_training_loads_no_compiler_and_the_compiler_works_afterwards():
    environment = os.environ | {"PYTHONPATH": str(Path(hemafast.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", TRAINS], check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "[]\n"
