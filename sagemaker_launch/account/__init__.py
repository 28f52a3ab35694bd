"""IAM policies that an AWS account needs."""
