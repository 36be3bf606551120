"""Populations, virtual devices and virtual time around the very same engine; the only floor that may use everything."""
