"""The local stand-in for the SageMaker service: moto for S3, IAM, STS and logs, real processes for jobs and endpoints.

It shares AWS's API over HTTP with the launcher and no code, so it finds errors of the launcher. Start it with
`python -m sagemaker_launch.rehearsal --root DIR`.
"""
