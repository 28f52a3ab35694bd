"""Config, search space, data sets, `train()`, the sweep, tracking, reports and the command line."""
