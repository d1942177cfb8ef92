"""Deliveries to the addresses of callers."""
