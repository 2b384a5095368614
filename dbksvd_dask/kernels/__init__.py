"""Numerics on one chunk in memory; imports neither dask nor xarray."""
