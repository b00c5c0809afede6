"""The version of kgpyro, read by the package and by its build."""

VERSION = "0.2.0"
