"""The local stand-in for the SageMaker service: moto for S3, IAM, STS and logs, real processes for jobs and endpoints.

The launcher calls it as it calls AWS, over HTTP only, so a rehearsal finds errors of the launcher's requests. Both use
the same tables of AWS (models of the API, forbidden combinations, image URIs, names of logs, the permissions that calls
need), so a rehearsal does not find errors of these. Start it with `python -m sagemaker_launch.rehearsal --root DIR`.
"""
