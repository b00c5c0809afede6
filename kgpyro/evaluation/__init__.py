"""Measures of predictions as plain arrays: ranks, calibration, conformal sets."""
