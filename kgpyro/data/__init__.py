"""Graphs, their queries, features of entities, labelled facts."""
