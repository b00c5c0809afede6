"""From a graph to a posterior: the bound and its handlers, the training loop, checkpoints, ``fit``."""
