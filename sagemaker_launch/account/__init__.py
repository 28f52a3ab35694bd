"""What an AWS account needs."""
