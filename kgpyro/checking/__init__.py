"""Whether to believe a fit: predictive checks, diagnostics, comparisons."""
