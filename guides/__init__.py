"""Amortised guides: variational distributions of latents, given the symbols they stand for."""
