"""Federated learning with a provable privacy guarantee."""
