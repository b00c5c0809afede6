"""Fused passes over tables: exact log-likelihoods of all candidates, and Gaussian draws with their KL."""
