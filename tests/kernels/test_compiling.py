"""Kernels are right on processors with shorter vectors than this one's, and without any of their own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

AVX2 = "+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+f16c,+fma,+lzcnt,+mmx,+movbe,+popcnt,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3"

# A small part of all kernels, in one precision each: compiling is most of the time.
PROGRAM = """
import json, torch
from rnnsparse.kernels import gru, products, recurrence
from rnnsparse.kernels.emit import VECTOR_BYTES
from rnnsparse.kernels.matrix import build_matrix
from rnnsparse.kernels.products import vector_width
from rnnsparse.nn import reference

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)
errors = {}

def compare(name, found, expected):
    errors[name] = float((found - expected).norm() / expected.norm())

K, T, H, B = 1, 3, 9, 3 * vector_width(torch.float64)
indices = torch.randperm(3 * H * H, generator=generator)[:90].sort().values
values, matrix = normal(90), build_matrix(indices, 3 * H, H)
dense = torch.zeros(3 * H * H, dtype=torch.float64).index_copy_(0, indices, values).view(3 * H, H)

x, g = normal(T, H, B), normal(T, 3 * H, B)
y, out = g.clone(), torch.zeros(90, dtype=torch.float64)
products.add_product(matrix, values, x, y)
compare("product", y, g + dense @ x)
products.add_sampled_product(matrix, g, x, out)
compare("sampled product", out, torch.einsum("trb,tcb->rc", g, x).flatten()[indices])

bias, q_bias, table = normal(3 * H), normal(H), normal(7, 3 * H)
tokens = torch.randint(7, (T, B), generator=generator, dtype=torch.int32)
gates, h, dy, dh = normal(K, T, 4 * H, B), normal(K, T + 1, H, B), normal(K, T, H, B), normal(K, H, B)
h_0, dh_T = h[:, 0].clone(), dh.clone()
gru.forward(matrix, values, recurrence.LayerInput(bias, table_VR=table, tokens_MB=tokens), q_bias, gates, h)
gru.backward(matrix, values, gates, h, lambda first, last: dy[:, first:last].contiguous(), dh)
b_hh = torch.cat([torch.zeros(2 * H, dtype=torch.float64), q_bias])
state = h_0.transpose(1, 2).clone().requires_grad_()
inputs = table[tokens.long()]
eye, no_bias = torch.eye(3 * H, dtype=torch.float64), torch.zeros(3 * H, dtype=torch.float64)
expected, last = reference.run("gru", inputs, state, eye, dense, no_bias, b_hh)
((expected.transpose(1, 2) * dy[0]).sum() + (last.transpose(1, 2) * dh_T).sum()).backward()
compare("outputs", h[0, 1:], expected.detach().transpose(1, 2))
compare("initial state", dh, state.grad.transpose(1, 2))
print(json.dumps({"bytes": VECTOR_BYTES, "errors": errors}))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86 processors")
@pytest.mark.parametrize(
    ("name", "features"), [("haswell", AVX2), ("generic", None)], ids=["AVX2", "no vectors in particular"]
)
def test_kernels_are_right_on_other_processors(name: str, features: str | None, environment: dict[str, str]) -> None:
    environment = environment | {"NUMBA_CPU_NAME": name}
    if features is not None:
        environment["NUMBA_CPU_FEATURES"] = features
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == 32
    assert max(found["errors"].values()) <= 1e-12, found["errors"]
