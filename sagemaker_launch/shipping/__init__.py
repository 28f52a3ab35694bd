"""Uploads to S3 and ECR, and downloads of results."""
