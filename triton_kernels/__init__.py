"""Triton kernels of soap_fast; installs as `soap_fast.triton_kernels`."""
