"""The Triton kernels; `backend.TritonKernels` computes a call. Triton is imported only here."""
