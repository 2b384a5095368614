"""Journeys of a researcher in a real browser."""
