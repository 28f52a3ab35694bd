"""What is sent to S3 and ECR, and what comes back."""
