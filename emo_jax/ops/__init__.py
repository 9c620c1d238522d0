"""Attention kernels chosen by backend."""
