"""Transports: how messages travel between replicas and shards."""
