"""Mechanisms, their cost in zCDP, and the statement that may be made; numpy and scipy only, no TensorFlow, wire or disk."""
