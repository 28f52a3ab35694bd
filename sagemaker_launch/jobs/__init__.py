"""Training and tuning jobs: start, follow and synchronise them."""
