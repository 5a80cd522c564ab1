"""Decoded images on disk or on a device, behind one protocol; built once, then read by row."""
