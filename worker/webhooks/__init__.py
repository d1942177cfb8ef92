"""Deliveries of webhooks to callers' URLs."""
