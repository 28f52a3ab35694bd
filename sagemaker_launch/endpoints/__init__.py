"""Endpoints: deploy, query, list and delete them."""
