"""Federated data sets: who holds which examples."""
