"""The environment is JSON and lists what is usable and why not."""

from __future__ import annotations

import json

import torch

from peftlab.measure.environment import cpu_arithmetic, describe_environment, optional_packages


def test_description() -> None:
    result = describe_environment()
    assert json.loads(json.dumps(result)) == result
    assert result["packages"]["torch"] == torch.__version__
    assert result["cpu"]["threads"] == torch.get_num_threads()
    assert result["cpu"]["model"]
    assert len(result["devices"]) == torch.cuda.device_count()
    for package in result["optional"].values():
        assert package["usable"] == (package["why_not"] is None)


def test_kinds_of_processor() -> None:
    assert cpu_arithmetic(frozenset({"avx2", "fma"})) == "AVX2 only"
    assert cpu_arithmetic(frozenset({"avx2", "avx512f"})).startswith("AVX512 without")
    zen4 = frozenset({"avx2", "avx512f", "avx512_bf16", "avx512_vnni"})
    assert cpu_arithmetic(zen4) == "AVX512-BF16-VNNI"
    assert cpu_arithmetic(frozenset({"asimd", "bf16"})) == "NEON with BF16"
    assert cpu_arithmetic(frozenset()) == "unknown"


def test_triton_wants_cuda() -> None:
    reason = optional_packages(cuda=False)["triton"]["why_not"]
    assert reason in ("there is no CUDA device", "not installed: pip install 'peftlab[kernels]'")
