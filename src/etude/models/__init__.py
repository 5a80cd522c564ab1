"""Backbones, weights, the head, and features computed once."""
