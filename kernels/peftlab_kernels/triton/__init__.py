"""The Triton backend; `backend.TritonKernels` is its face. Triton is imported nowhere else."""
