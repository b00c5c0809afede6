"""Figures of a posterior, and the explorer of priors."""
