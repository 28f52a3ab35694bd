"""The local stand-in for the SageMaker service: moto for S3, IAM, STS and logs, real processes for jobs and endpoints.

It shares nothing with the launcher but AWS's API over HTTP, so it can disagree with it. Start it with
`python -m sagemaker_launch.rehearsal --root DIR`.
"""
