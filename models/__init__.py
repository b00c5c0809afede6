"""Generative models of knowledge graphs."""
