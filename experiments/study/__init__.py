"""The Optuna study: its storage, who works on which trial, samplers, pruning and search spaces."""
