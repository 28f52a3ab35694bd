"""`config.yaml` of an export, by which Ray Serve serves it: AWS's container starts what it finds at /opt/ml/model."""

CONFIG_FILE = "config.yaml"
CONFIG = """\
# AWS's container `ray:serve-ml-sagemaker-…` deploys what this file names, with /opt/ml/model/code on Python's path.
# Replicas and GPUs are those of the instance: code/inference.py asks Ray for them.
applications:
  - name: classifier
    route_prefix: /
    import_path: inference:ray_application
"""
"""Source: github.com/aws/deep-learning-containers, docs/ray and examples/ray/cv-model (2026-08)."""
